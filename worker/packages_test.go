package worker

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// publish makes an sdist and puts it into the upstream index.
func (p *plane) publish(name, version string, files map[string]string) (sha string) {
	folder := strings.ReplaceAll(name, "-", "_") + "-" + version
	var out bytes.Buffer
	zip := gzip.NewWriter(&out)
	archive := tar.NewWriter(zip)
	files["PKG-INFO"] = fmt.Sprintf("Metadata-Version: 2.2\nName: %s\nVersion: %s\n", name, version)
	for _, file := range slices.Sorted(maps.Keys(files)) {
		header := &tar.Header{Name: folder + "/" + file, Mode: 0o644, Size: int64(len(files[file])), ModTime: time.Unix(1e9, 0)}
		if err := archive.WriteHeader(header); err != nil {
			p.t.Fatal(err)
		}
		if _, err := io.WriteString(archive, files[file]); err != nil {
			p.t.Fatal(err)
		}
	}
	if err := archive.Close(); err != nil {
		p.t.Fatal(err)
	}
	if err := zip.Close(); err != nil {
		p.t.Fatal(err)
	}
	p.put0(name, folder+".tar.gz", out.Bytes())
	sum := sha256.Sum256(out.Bytes())
	return hex.EncodeToString(sum[:])
}

func (p *plane) put0(project, filename string, data []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sdists[project] == nil {
		p.sdists[project] = map[string][]byte{}
	}
	p.sdists[project][filename] = data
}

// backend is a build backend that needs nothing. The body is what build_wheel does; wheel() makes a wheel.
func backend(name, version, body string, requires ...string) map[string]string {
	quoted := make([]string, len(requires))
	for i, r := range requires {
		quoted[i] = strconv.Quote(r)
	}
	return map[string]string{
		"pyproject.toml": "[build-system]\nrequires = [" + strings.Join(quoted, ", ") + "]\nbuild-backend = \"backend\"\nbackend-path = [\".\"]\n",
		"backend.py": fmt.Sprintf(`
import os, sys, time, zipfile

NAME, VERSION = %q, %q

def wheel(folder, name=NAME, version=VERSION, said=None):
    stem = name.replace("-", "_") + "-" + version
    with zipfile.ZipFile(os.path.join(folder, stem + "-py3-none-any.whl"), "w") as z:
        info = stem + ".dist-info/"
        z.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: %%s\nVersion: %%s\n" %% (said or name, version))
        z.writestr(info + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr(info + "RECORD", "")
    return stem + "-py3-none-any.whl"

def get_requires_for_build_wheel(config_settings=None):
    return []

def build_wheel(folder, config_settings=None, metadata_directory=None):
%s
`, name, version, indent(body)),
	}
}

func indent(s string) string {
	return "    " + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n    ")
}

func pureWheel(t *testing.T, name, version string, requires ...string) []byte {
	var out bytes.Buffer
	z := zip.NewWriter(&out)
	info := name + "-" + version + ".dist-info/"
	metadata := fmt.Sprintf("Metadata-Version: 2.1\nName: %s\nVersion: %s\n", name, version)
	for _, r := range requires {
		metadata += "Requires-Dist: " + r + "\n"
	}
	for _, f := range [][2]string{
		{name + ".py", "version = '" + version + "'\n"},
		{info + "METADATA", metadata},
		{info + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"},
		{info + "RECORD", ""},
	} {
		e, err := z.Create(f[0])
		if err == nil {
			_, err = e.Write([]byte(f[1]))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}
