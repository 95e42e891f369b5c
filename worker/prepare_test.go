package worker

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// The cache of sources does not grow for ever: what was not used for long goes when a worker starts, the rest stays.
func TestForgetsOldSources(t *testing.T) {
	w, err := New(Config{URL: "http://127.0.0.1:1", Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	w.dir = w.Dir
	for name, age := range map[string]time.Duration{"ab/old": sourceAge + time.Hour, "ab/used": sourceAge - time.Hour} {
		path := w.path("cache", "sdists", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if at := time.Now().Add(-age); os.Chtimes(path, at, at) != nil {
			t.Fatal("the time of a file cannot be set")
		}
	}
	w.forget()
	if _, err := os.Stat(w.path("cache", "sdists", "ab/old")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the old source is still there: %v", err)
	}
	if _, err := os.Stat(w.path("cache", "sdists", "ab/used")); err != nil {
		t.Errorf("the source in use: %v", err)
	}
}
