package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/internal/pgtest"
	"github.com/wheelrefinery/refinery/worker"
)

// sleeper is an index with one package, whose build sleeps.
func sleeper(t *testing.T) *httptest.Server {
	t.Helper()
	var sdist bytes.Buffer
	z := gzip.NewWriter(&sdist)
	archive := tar.NewWriter(z)
	for name, text := range map[string]string{
		"pyproject.toml": "[build-system]\nrequires = []\nbuild-backend = \"backend\"\nbackend-path = [\".\"]\n",
		"PKG-INFO":       "Metadata-Version: 2.1\nName: sleeper\nVersion: 1.0\n",
		"backend.py":     "import time\ndef build_wheel(folder, config_settings=None, metadata_directory=None):\n    print('asleep', flush=True)\n    time.sleep(600)\n",
	} {
		if err := archive.WriteHeader(&tar.Header{Name: "sleeper-1.0/" + name, Mode: 0o644, Size: int64(len(text))}); err != nil {
			t.Fatal(err)
		}
		if _, err := archive.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(sdist.Bytes())
	mux := http.NewServeMux()
	mux.HandleFunc("GET /simple/sleeper/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/vnd.pypi.simple.v1+json")
		_ = json.NewEncoder(w).Encode(map[string]any{"meta": map[string]string{"api-version": "1.0"}, "name": "sleeper", "files": []any{map[string]any{
			"filename": "sleeper-1.0.tar.gz", "url": "/files/sleeper-1.0.tar.gz", "hashes": map[string]string{"sha256": hex.EncodeToString(sum[:])},
		}}})
	})
	mux.HandleFunc("GET /files/", func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(sdist.Bytes()))
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

// A real worker on a real control plane: it proves that it works, and stops a build that is cancelled within one heartbeat.
func TestRealWorker(t *testing.T) {
	c := startControl(t)
	var p api.Problem
	if c.call(504, "POST", "/worker/smoke", api.SmokeRequest{TimeoutSeconds: 1}, &p); !strings.Contains(p.Detail, "No worker took it") {
		t.Errorf("%+v", p)
	}
	dir, err := pgtest.TempDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w, err := worker.New(worker.Config{
		URL: c.url(), ID: "real", Dir: dir, Slots: 1, UpstreamIndex: sleeper(t).URL + "/simple/", Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})

	var r api.SmokeReport
	c.call(200, "POST", "/worker/smoke", nil, &r)
	if !r.Ok || len(r.Failures) > 0 || r.Worker != "real" || r.PythonVersion == "" || r.Uv == "" || !strings.Contains(r.Gcc, "gcc") || r.User == "" ||
		r.Wheel != "refinery_smoke-1.0-py3-none-any.whl" || r.PlanMS <= 0 || r.BuildMS <= 0 || r.DurationMS < r.PlanMS || r.Limits.TimeoutSeconds != 3600 {
		t.Errorf("%+v", r)
	}
	if got := c.artifacts(); len(got) > 0 {
		t.Errorf("the proof is in the index: %q", got)
	}

	var queued api.EnqueueAnswer
	c.call(201, "POST", "/queue/enqueue", api.EnqueueRequest{Package: "sleeper", Version: "1.0"}, &queued)
	b := queued.Build
	at := fmt.Sprintf("/builds/%s/%s/%s/%s", b.Name, b.Version, b.PythonTag, b.PlatformTag)
	eventually(t, 60*time.Second, func() error {
		var build api.Build
		if c.call(200, "GET", at, nil, &build); build.Status != api.BuildStatusBuilding {
			return fmt.Errorf("%+v", build)
		}
		return asleep(true)
	})
	// While the one slot is taken, nobody proves anything.
	if c.call(504, "POST", "/worker/smoke", api.SmokeRequest{TimeoutSeconds: 1}, &p); !strings.Contains(p.Detail, "busy") {
		t.Errorf("%+v", p)
	}
	began := time.Now()
	c.call(200, "POST", at+"/cancel", api.ReasonRequest{Reason: "enough"}, nil)
	eventually(t, 15*time.Second, func() error { return asleep(false) })
	took := time.Since(began)
	if took > 11*time.Second { // a heartbeat each 10 s, and the time to kill
		t.Errorf("the build went on for %v", took)
	}
	t.Logf("stopped after %v", took.Round(10*time.Millisecond))
	// The slot is free again, and nothing came of the build.
	c.call(200, "POST", "/worker/smoke", nil, &r)
	var build api.Build
	c.call(200, "GET", at, nil, &build)
	if build.Status != api.BuildStatusCancelled || build.Attempts[0].Status != "cancelled" || build.Reason != "enough" {
		t.Errorf("%+v", build)
	}
}

// asleep says whether the build's backend runs somewhere.
func asleep(want bool) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	found := false
	for _, e := range entries {
		env, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		cwd, _ := os.Readlink("/proc/" + e.Name() + "/cwd")
		found = found || strings.Contains(string(env), "python") && strings.Contains(cwd, "sleeper-1.0")
	}
	if found != want {
		return fmt.Errorf("the build runs: %v", found)
	}
	return nil
}
