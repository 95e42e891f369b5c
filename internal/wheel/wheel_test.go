package wheel

import (
	"archive/zip"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/wheelrefinery/refinery/internal/fault"
	"github.com/wheelrefinery/refinery/internal/pgtest"
)

type file struct{ name, text string }

const (
	goodName     = "Flask_Login-1.0-py2.py3-none-any.whl"
	goodMetadata = "Metadata-Version: 2.1\nName: flask.login\nVersion: 1.0.0\nRequires-Python: >=3.8\n\nVersion: 7 in the description\n"
	goodWheel    = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\nTag: py2-none-any\n"
)

func good() []file {
	return []file{
		{"flask_login/__init__.py", ""},
		{"flask_login-1.0.dist-info/METADATA", goodMetadata},
		{"flask_login-1.0.dist-info/WHEEL", goodWheel},
		{"flask_login-1.0.dist-info/RECORD", ""},
	}
}

func pack(t testing.TB, files []file) []byte {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, f := range files {
		w, err := z.Create(f.name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.text); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRead(t *testing.T) {
	data := pack(t, good())
	got, err := Read(goodName, bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	want := &Wheel{
		Filename:       Filename{Project: "flask-login", Version: "1.0", Tags: []string{"py2-none-any", "py3-none-any"}},
		RequiresPython: ">=3.8", Metadata: []byte(goodMetadata),
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestMain(m *testing.M) { pgtest.Main(m) }

// The wheel of pip that comes with every Python.
func TestReadRealWheel(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "python3", "-c", "import ensurepip,os;print(os.path.dirname(ensurepip.__file__))").Output()
	var found []string
	if err == nil {
		for _, dir := range []string{filepath.Join(strings.TrimSpace(string(out)), "_bundled"), "/usr/share/python-wheels"} {
			more, _ := filepath.Glob(filepath.Join(dir, "*.whl"))
			found = append(found, more...)
		}
	}
	if len(found) == 0 {
		pgtest.Missing(t, "a Python with ensurepip", "install python3-venv")
	}
	for _, path := range found {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		w, err := Read(filepath.Base(path), bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if !strings.HasPrefix(filepath.Base(path), w.Project+"-"+w.Version+"-") || len(w.Metadata) == 0 {
			t.Errorf("%s: %+v", path, w.Filename)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	const info = "flask_login-1.0.dist-info/"
	replace := func(name, from, to string) func([]file) []file {
		return func(fs []file) []file {
			for i, f := range fs {
				if f.name == info+name {
					if !strings.Contains(f.text, from) {
						t.Fatalf("%s has no %q", name, from)
					}
					fs[i].text = strings.Replace(f.text, from, to, 1)
				}
			}
			return fs
		}
	}
	add := func(more ...file) func([]file) []file {
		return func(fs []file) []file { return append(fs, more...) }
	}
	without := func(name string) func([]file) []file {
		return func(fs []file) []file {
			return slices.DeleteFunc(fs, func(f file) bool { return f.name == info+name })
		}
	}
	for name, c := range map[string]struct {
		change func([]file) []file
		says   string
	}{
		"other name":              {replace("METADATA", "flask.login", "flask"), "Name in METADATA disagree"},
		"other version":           {replace("METADATA", "1.0.0", "1.0.1"), "Version in METADATA disagree"},
		"no version":              {replace("METADATA", "Version: 1.0.0\n", ""), "version exactly once"},
		"two names":               {replace("METADATA", "Name:", "Name: flask-login\nName:"), "name exactly once"},
		"version in description":  {replace("METADATA", "Version: 1.0.0", "\nVersion: 1.0"), "version exactly once"},
		"no metadata":             {without("METADATA"), "no METADATA"},
		"no WHEEL":                {without("WHEEL"), "no WHEEL"},
		"other tags":              {replace("WHEEL", "py2-none-any", "py2-none-linux_x86_64"), "Tag lines in WHEEL disagree"},
		"fewer tags":              {replace("WHEEL", "Tag: py2-none-any\n", ""), "Tag lines in WHEEL disagree"},
		"more tags":               {replace("WHEEL", "Tag: py2", "Tag: cp39-abi3-win32\nTag: py2"), "Tag lines in WHEEL disagree"},
		"tag no tag":              {replace("WHEEL", "py2-none-any", "py2"), "not of the form"},
		"wheel version":           {replace("WHEEL", "Wheel-Version: 1.0", "Wheel-Version: 2.0"), "Wheel-Version"},
		"two dist-infos":          {add(file{"other-1.0.dist-info/METADATA", goodMetadata}), "more than one .dist-info"},
		"other dist-info":         {func(fs []file) []file { return []file{{"other-1.0.dist-info/METADATA", goodMetadata}} }, ".dist-info folder disagree"},
		"dist-info other version": {func(fs []file) []file { return []file{{"flask_login-2.dist-info/METADATA", goodMetadata}} }, ".dist-info folder disagree"},
		"no dist-info":            {func(fs []file) []file { return fs[:1] }, "no .dist-info"},
		"twice":                   {add(file{info + "METADATA", goodMetadata}), "a file twice"},
		"traversal":               {add(file{"../evil", ""}), "leads out"},
		"absolute":                {add(file{"/etc/passwd", ""}), "leads out"},
		"backslash":               {add(file{`..\evil`, ""}), "leads out"},
		"huge metadata":           {replace("METADATA", "7", strings.Repeat("x", mostMetadata)), "larger than"},
		"requires python":         {replace("METADATA", ">=3.8", strings.Repeat(">=3.8,", 50)), "Requires-Python"},
		"build tag":               {replace("WHEEL", "Generator: test", "Build: 7"), "Build in WHEEL disagree"},
	} {
		t.Run(name, func(t *testing.T) {
			data := pack(t, c.change(good()))
			w, err := Read(goodName, bytes.NewReader(data), int64(len(data)))
			if w != nil || fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %q", err, c.says)
			}
		})
	}
}

// Archives that zip writers do not make.
func TestReadRefusesBrokenArchives(t *testing.T) {
	data := pack(t, good())
	for name, data := range map[string][]byte{
		"empty":     nil,
		"no zip":    []byte("hello"),
		"truncated": data[:len(data)-30],
	} {
		w, err := Read(goodName, bytes.NewReader(data), int64(len(data)))
		if w != nil || fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What it says to unpack to is what installers make room for.
	var bomb bytes.Buffer
	z := zip.NewWriter(&bomb)
	if _, err := z.CreateRaw(&zip.FileHeader{Name: "zeros", Method: zip.Deflate, UncompressedSize64: 200 << 20}); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(goodName, bytes.NewReader(bomb.Bytes()), int64(bomb.Len())); err == nil || !strings.Contains(err.Error(), "unpacks to too much") {
		t.Errorf("bomb: %v", err)
	}
	// Every entry's data begins at the first one's.
	many := make([]file, 300)
	for i := range many {
		many[i] = file{"f" + strings.Repeat("x", i), strings.Repeat("0123456789", 50)}
	}
	data = pack(t, many)
	at := bytes.Index(data, []byte("PK\x01\x02"))
	for i := at; i >= 0; {
		data[i+20] = 0xff // compressed size
		data[i+21] = 0xff
		next := bytes.Index(data[i+1:], []byte("PK\x01\x02"))
		if next < 0 {
			break
		}
		i += 1 + next
	}
	if _, err := Read(goodName, bytes.NewReader(data), int64(len(data))); err == nil || !strings.Contains(err.Error(), "overlap") {
		t.Errorf("overlapping files: %v", err)
	}
	// More directory than a wheel has.
	data = pack(t, make([]file, 1))
	entry := data[bytes.Index(data, []byte("PK\x01\x02")):bytes.Index(data, []byte("PK\x05\x06"))]
	end := data[bytes.Index(data, []byte("PK\x05\x06")):]
	big := append(bytes.Repeat(entry, 6<<16+1), end...) // the count of entries is kept modulo 2^16
	size := uint32(len(big) - len(end))
	for i := range 4 {
		big[len(big)-len(end)+12+i] = byte(size >> (8 * i))
		big[len(big)-len(end)+16+i] = 0
	}
	if _, err := Read(goodName, bytes.NewReader(big), int64(len(big))); err == nil || !strings.Contains(err.Error(), "not a zip archive that can be read") {
		t.Errorf("huge directory: %v", err)
	}
}

type brokenDisk struct{ bytes.Reader }

var errDisk = errors.New("disk")

func (*brokenDisk) ReadAt([]byte, int64) (int, error) { return 0, errDisk }

func TestReadDoesNotBlameTheWheelForTheDisk(t *testing.T) {
	if _, err := Read(goodName, &brokenDisk{}, 1000); !errors.Is(err, errDisk) {
		t.Error(err)
	}
}

func TestParseFilename(t *testing.T) {
	for name, want := range map[string]Filename{
		"a-1-py3-none-any.whl":                                 {"a", "1", "", []string{"py3-none-any"}},
		"A.b_C-1.0.post1-2x-cp311-cp311-linux_x86_64.whl":      {"a-b-c", "1.0.post1", "2x", []string{"cp311-cp311-linux_x86_64"}},
		"a-1!2.0+Local_1.007-py3-none-any.whl":                 {"a", "1!2.0+local.1.7", "", []string{"py3-none-any"}},
		"a-1-cp36-abi3-manylinux1_x86_64.manylinux2_x.whl":     {"a", "1", "", []string{"cp36-abi3-manylinux1_x86_64", "cp36-abi3-manylinux2_x"}},
		"a-1.0rc1-py2.py3-none.abi3-any.whl":                   {"a", "1.0rc1", "", []string{"py2-abi3-any", "py2-none-any", "py3-abi3-any", "py3-none-any"}},
		"a-1-PY3-none-Any.whl":                                 {"a", "1", "", []string{"py3-none-any"}},
		"a-1-py3.py3-none-any.whl":                             {"a", "1", "", []string{"py3-none-any"}},
		"zope.interface-7.0-cp312-cp312-macosx_11_0_arm64.whl": {"zope-interface", "7.0", "", []string{"cp312-cp312-macosx_11_0_arm64"}},
	} {
		got, err := ParseFilename(name)
		if d := cmp.Diff(want, got); d != "" || err != nil {
			t.Errorf("%s: %v %s", name, err, d)
		}
	}
	tags := strings.TrimSuffix(strings.Repeat("p.", 15), ".")
	for _, name := range []string{
		"", ".whl", "a.whl", "a-1.whl", "a-1-py3-none.whl", "a-1-py3-none-any.zip", "a-1-py3-none-any.WHL", "a-1-b-py3-none-any.whl",
		"a-1-1-1-py3-none-any.whl", "a__b-1-py3-none-any.whl", "-1-py3-none-any.whl", "a-x-py3-none-any.whl", "a-1--none-any.whl",
		"a-1-py3-none-.whl", "a-1-py3.-none-any.whl", "../a-1-py3-none-any.whl", "a/b-1-py3-none-any.whl", "a-1-py3-none-any\x00.whl",
		"a-1+-py3-none-any.whl", "a-1+a..b-py3-none-any.whl", "é-1-py3-none-any.whl", "a-1-" + tags + "-" + tags + "-any.whl",
		strings.Repeat("a", 250) + "-1-py3-none-any.whl",
	} {
		if got, err := ParseFilename(name); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%q: %+v, %v", name, got, err)
		}
	}
}

func TestNormalizeVersion(t *testing.T) {
	for in, want := range map[string]string{
		"1.0": "1.0", "V1.0RC1": "1.0rc1", "1.0-1": "1.0.post1", "1.0a": "1.0a0", "01.02": "1.2", "1.0+Ubuntu-1": "1.0+ubuntu.1",
		"1.0+0_00": "1.0+0.0", "1.0.dev": "1.0.dev0", "2!1": "2!1",
	} {
		if got, err := NormalizeVersion(in); got != want || err != nil {
			t.Errorf("%s: %s, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "x", "1.0+", "1.0+a+b", "1.0+.a", "1..0", "99999999999999999999999", strings.Repeat("1.", 60) + "1"} {
		if got, err := NormalizeVersion(in); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	if !SameVersion("1.0", "1.0.0") || SameVersion("1.0", "1.0.1") || SameVersion("x", "x") || !SameVersion("1+a-1", "1+A.1") {
		t.Error("SameVersion")
	}
}

// A name that parses is safe to store and show, and says the same in its normal form.
func FuzzParseFilename(f *testing.F) {
	for _, s := range []string{goodName, "a-1!2.0+l_1-2x-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", "a-1-py3-none-any.whl", "..-1-py3-none-any.whl"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		n, err := ParseFilename(name)
		if err != nil {
			if fault.CodeOf(err) != fault.Invalid {
				t.Fatal(err)
			}
			return
		}
		if strings.ContainsAny(name, "/\\\x00") || len(n.Tags) == 0 || len(n.Tags) > mostTags || !slices.IsSorted(n.Tags) {
			t.Errorf("%q: %+v", name, n)
		}
		again := strings.ReplaceAll(n.Project, "-", "_") + "-" + n.Version
		if n.Build != "" {
			again += "-" + n.Build
		}
		for _, tag := range n.Tags {
			one, err := ParseFilename(again + "-" + tag + ".whl")
			if len(again)+len(tag) > 250 {
				continue
			}
			if err != nil || one.Project != n.Project || one.Version != n.Version || one.Tags[0] != tag {
				t.Errorf("%q becomes %q: %+v, %v", name, again, one, err)
			}
		}
	})
}

// An archive of any bytes, and one whose two texts are any: it is refused as invalid, or it is the wheel that its filename says.
func FuzzRead(f *testing.F) {
	for _, files := range [][]file{good(), good()[:2], append(good(), file{"../x", "x"})} {
		f.Add(pack(f, files), []byte(goodMetadata), []byte(goodWheel))
	}
	f.Add([]byte("PK\x05\x06"), []byte("Name: flask-login\nVersion: 1\n"), []byte("Wheel-Version: 2.0\n"))
	f.Fuzz(func(t *testing.T, archive, metadata, wheelFile []byte) {
		texts := good()
		texts[1].text, texts[2].text = string(metadata), string(wheelFile)
		for _, data := range [][]byte{archive, pack(t, texts)} {
			w, err := Read(goodName, bytes.NewReader(data), int64(len(data)))
			if err != nil {
				if fault.CodeOf(err) != fault.Invalid {
					t.Fatal(err)
				}
				continue
			}
			if w.Project != "flask-login" || w.Version != "1.0" || len(w.Tags) != 2 || len(w.Metadata) > mostMetadata || !utf8.ValidString(w.RequiresPython) {
				t.Errorf("%+v", w)
			}
		}
	})
}
