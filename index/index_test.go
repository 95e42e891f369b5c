package index_test

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/index"
	"github.com/wheelrefinery/refinery/internal/pgtest"
	"github.com/wheelrefinery/refinery/internal/wheelstore"
	"github.com/wheelrefinery/refinery/projections"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

const metadata = "Metadata-Version: 2.1\nName: Demo_Pkg\nVersion: %s\nRequires-Python: >=3.8\n"

// wheel makes a real wheel of demo_pkg.
func wheel(t *testing.T, version string) []byte {
	t.Helper()
	info := "demo_pkg-" + version + ".dist-info/"
	files := [][2]string{
		{"demo_pkg.py", "VERSION = '" + version + "'\n"},
		{info + "METADATA", fmt.Sprintf(metadata, version)},
		{info + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"},
	}
	var record strings.Builder
	for _, f := range files {
		sum := sha256.Sum256([]byte(f[1]))
		fmt.Fprintf(&record, "%s,sha256=%s,%d\n", f[0], base64.RawURLEncoding.EncodeToString(sum[:]), len(f[1]))
	}
	files = append(files, [2]string{info + "RECORD", record.String() + info + "RECORD,,\n"})
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, f := range files {
		w, err := z.Create(f[0])
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, f[1])
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// start serves an index with the given versions of demo-pkg, which came through the event log.
func start(t *testing.T, versions ...string) *httptest.Server {
	t.Helper()
	pool := pgtest.New(t)
	log, err := eventlog.Open(t.Context(), pool, eventlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(log.Close)
	runner := projections.New(log, pool, slog.New(slog.DiscardHandler))
	if err := runner.Setup(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- runner.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	store, err := wheelstore.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	for _, v := range versions {
		filename := "demo_pkg-" + v + "-py3-none-any.whl"
		sum, size, err := store.Put(t.Context(), bytes.NewReader(wheel(t, v)), 1<<20, nil)
		if err != nil {
			t.Fatal(err)
		}
		meta, _, err := store.Put(t.Context(), strings.NewReader(fmt.Sprintf(metadata, v)), 1<<20, nil)
		if err != nil {
			t.Fatal(err)
		}
		r, err := log.Append(t.Context(), eventlog.Entry{
			Outcome: eventlog.Outcome{Command: uuid.New(), Name: "test", Stream: events.ArtifactStream(filename), Status: eventlog.Applied},
			Events: []events.Event{events.ArtifactPublished{
				Filename: filename, SHA256: sum, Size: size, Project: "demo-pkg", Version: v, Tags: []string{"py3-none-any"},
				RequiresPython: ">=3.8", MetadataSHA256: meta, Attempt: 1,
				Build: events.BuildID{Name: "demo-pkg", Version: v, PythonTag: "cp311", PlatformTag: "linux_x86_64"},
			}},
		})
		if err != nil || r[0].Err != nil {
			t.Fatal(err, r)
		}
	}
	wait, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	if err := runner.Wait(wait, log.Head()); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(index.New(pool, store))
	t.Cleanup(func() { s.Close(); http.DefaultClient.CloseIdleConnections() })
	return s
}

func get(t *testing.T, url string, header ...string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	answer, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)
	return answer, string(body)
}

func TestPip(t *testing.T) {
	s := start(t, "1.10", "1.9")
	venv := filepath.Join(t.TempDir(), "venv")
	if out, err := exec.CommandContext(t.Context(), "python3", "-m", "venv", venv).CombinedOutput(); err != nil {
		pgtest.Missing(t, "Python 3.9 or newer with venv", "install python3 and python3-venv: "+string(out))
	}
	// Python's own pip may be too old for metadata files (PEP 658).
	if out, err := exec.CommandContext(t.Context(), filepath.Join(venv, "bin", "pip"), "install", "-q", "pip==25.0.1").CombinedOutput(); err != nil {
		pgtest.Missing(t, "pip 25", "pip must reach its index: "+string(out))
	}
	pip := exec.CommandContext(t.Context(), filepath.Join(venv, "bin", "pip"), "--isolated", "install", "-v", "--no-cache-dir",
		"--index-url", s.URL+"/simple/", "Demo.Pkg<2")
	pip.Env = append(pip.Environ(), "PIP_FIND_LINKS=")
	out, err := pip.CombinedOutput()
	if err != nil {
		t.Fatalf("pip: %v\n%s", err, out)
	}
	if !strings.Contains(string(out), "demo_pkg-1.10-py3-none-any.whl.metadata") {
		t.Errorf("pip did not read the metadata file:\n%s", out)
	}
	got, err := exec.CommandContext(t.Context(), filepath.Join(venv, "bin", "python"), "-c", "import demo_pkg; print(demo_pkg.VERSION)").CombinedOutput()
	if err != nil || string(got) != "1.10\n" {
		t.Errorf("installed %q, %v; want 1.10", got, err)
	}
}

func TestSimple(t *testing.T) {
	s := start(t, "1.10", "1.9")
	answer, body := get(t, s.URL+"/simple/demo-pkg/", "Accept", "application/vnd.pypi.simple.v1+json, text/html;q=0.1")
	if kind := answer.Header.Get("Content-Type"); kind != "application/vnd.pypi.simple.v1+json" {
		t.Errorf("content type %q", kind)
	}
	var page struct {
		Meta     map[string]string
		Name     string
		Versions []string
		Files    []struct {
			Filename, URL  string
			Hashes         map[string]string
			Size           int64
			CoreMetadata   map[string]string `json:"core-metadata"`
			RequiresPython string            `json:"requires-python"`
		}
	}
	if err := json.Unmarshal([]byte(body), &page); err != nil {
		t.Fatal(err)
	}
	if page.Meta["api-version"] != "1.1" || page.Name != "demo-pkg" || fmt.Sprint(page.Versions) != "[1.9 1.10]" || len(page.Files) != 2 {
		t.Errorf("page %+v", page)
	}
	f := page.Files[0]
	want := wheel(t, "1.10")
	sum := sha256.Sum256(want)
	if f.Size != int64(len(want)) || f.Hashes["sha256"] != hex.EncodeToString(sum[:]) || f.RequiresPython != ">=3.8" {
		t.Errorf("file %+v", f)
	}
	if _, body = get(t, s.URL+"/artifacts/"+f.Filename); body != string(want) {
		t.Error("the wheel is not what was put in")
	}
	answer, body = get(t, s.URL+"/artifacts/"+f.Filename, "Range", "bytes=0-1")
	if answer.StatusCode != http.StatusPartialContent || body != "PK" {
		t.Errorf("range: %d %q", answer.StatusCode, body)
	}
	meta, body := get(t, s.URL+"/artifacts/"+f.Filename+".metadata")
	sum = sha256.Sum256([]byte(body))
	if meta.StatusCode != http.StatusOK || f.CoreMetadata["sha256"] != hex.EncodeToString(sum[:]) {
		t.Errorf("metadata: %d %q", meta.StatusCode, body)
	}
	answer, body = get(t, s.URL+"/simple/")
	if !strings.Contains(body, `<a href="demo-pkg/">`) || !strings.HasPrefix(answer.Header.Get("Content-Type"), "text/html") {
		t.Errorf("list: %s", body)
	}
	again, _ := get(t, s.URL+"/simple/", "If-None-Match", answer.Header.Get("ETag"))
	if again.StatusCode != http.StatusNotModified {
		t.Errorf("an unchanged list is %d", again.StatusCode)
	}
}

func TestSimpleRefuses(t *testing.T) {
	s := start(t, "1.0")
	for _, c := range []struct {
		path, accept string
		status       int
		location     string
	}{
		{"/simple/Demo.Pkg/", "", http.StatusMovedPermanently, "../demo-pkg/"},
		{"/simple/nothing/", "", http.StatusNotFound, ""},
		{"/simple/demo-pkg/", "image/png", http.StatusNotAcceptable, ""},
		{"/simple/demo-pkg/", "*/*", http.StatusOK, ""},
		{"/artifacts/demo_pkg-2.0-py3-none-any.whl", "", http.StatusNotFound, ""},
		{"/artifacts/..%2f..%2fetc%2fpasswd", "", http.StatusNotFound, ""},
	} {
		var header []string
		if c.accept != "" {
			header = []string{"Accept", c.accept}
		}
		answer, _ := get(t, s.URL+c.path, header...)
		if answer.StatusCode != c.status || answer.Header.Get("Location") != c.location {
			t.Errorf("%s: %d %q, want %d %q", c.path, answer.StatusCode, answer.Header.Get("Location"), c.status, c.location)
		}
	}
}
