package wheelstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wheelrefinery/refinery/internal/fault"
)

func open(t *testing.T, path string) *Dir {
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// files lists the regular files below path.
func files(t *testing.T, path string) []string {
	var names []string
	err := filepath.WalkDir(path, func(p string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			names = append(names, strings.TrimPrefix(p, path+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestPutAndOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "store")
	d := open(t, path)
	content := []byte("a wheel")
	want := sha256.Sum256(content)
	for range 2 { // twice is fine
		sum, size, err := d.Put(t.Context(), bytes.NewReader(content), int64(len(content)), func(c io.ReaderAt, sum string, size int64) error {
			got := make([]byte, size)
			if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, content) || sum != hex.EncodeToString(want[:]) {
				t.Errorf("the check sees %q, %s, %v", got, sum, err)
			}
			return nil
		})
		if err != nil || sum != hex.EncodeToString(want[:]) || size != int64(len(content)) {
			t.Fatal(sum, size, err)
		}
	}
	sum := hex.EncodeToString(want[:])
	if got := files(t, path); len(got) != 1 || got[0] != sum[:2]+"/"+sum {
		t.Errorf("files %v", got)
	}
	f, err := open(t, path).Open(sum)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%q, %v", got, err)
	}
}

func TestFailedPutLeavesNothing(t *testing.T) {
	broken := errors.New("broken")
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx   context.Context
		r     io.Reader
		check Check
		is    func(error) bool
	}{
		"reader": {t.Context(), io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(broken)), nil, func(err error) bool { return errors.Is(err, broken) }},
		"check":  {t.Context(), strings.NewReader("abc"), func(io.ReaderAt, string, int64) error { return broken }, func(err error) bool { return errors.Is(err, broken) }},
		"limit":  {t.Context(), strings.NewReader("12345"), nil, func(err error) bool { return fault.CodeOf(err) == fault.TooLarge }},
		"ctx":    {cancelled, strings.NewReader("abc"), nil, func(err error) bool { return errors.Is(err, context.Canceled) }},
	} {
		path := t.TempDir()
		sum, size, err := open(t, path).Put(c.ctx, c.r, 4, c.check)
		if sum != "" || size != 0 || !c.is(err) {
			t.Errorf("%s: %q, %d, %v", name, sum, size, err)
		}
		if got := files(t, path); len(got) != 0 {
			t.Errorf("%s leaves %v", name, got)
		}
	}
}

func TestOpenRefusesWhatIsNoHash(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	if err := os.WriteFile(filepath.Join(path, "..", "secret"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, sum := range []string{"", "../secret", "..", "/etc/passwd", strings.Repeat("a", 64), strings.Repeat("A", 64), strings.Repeat("a", 63), "tmp/" + strings.Repeat("a", 60)} {
		if f, err := d.Open(sum); f != nil || fault.CodeOf(err) != fault.NotFound {
			t.Errorf("%q: %v, %v", sum, f, err)
		}
	}
}

func TestOpenRemovesWhatDeadWritersLeft(t *testing.T) {
	path := t.TempDir()
	open(t, path)
	dead, alive, young := filepath.Join(path, tmp, "dead"), filepath.Join(path, tmp, "alive"), filepath.Join(path, tmp, "young")
	for _, name := range []string{dead, young} {
		if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Create(alive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{dead, alive} {
		if err := os.Chtimes(name, time.Time{}, time.Now().Add(-cleanAfter)); err != nil {
			t.Fatal(err)
		}
	}
	open(t, path)
	if got := files(t, path); !slices.Equal(got, []string{"tmp/alive", "tmp/young"}) { // another process may be about to lock the young one
		t.Errorf("left %v", got)
	}
}

func TestManyPutTheSame(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	content := bytes.Repeat([]byte("wheel"), 100_000)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			sum, _, err := d.Put(t.Context(), bytes.NewReader(content), 1<<20, nil)
			if err != nil {
				t.Error(err)
				return
			}
			f, err := d.Open(sum)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	wg.Wait()
	if got := files(t, path); len(got) != 1 {
		t.Errorf("files %v", got)
	}
}
