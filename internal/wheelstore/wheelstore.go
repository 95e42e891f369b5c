// Package wheelstore keeps wheels and their metadata by content: what is stored is named by its SHA-256 and never changes.
package wheelstore

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wheelrefinery/refinery/internal/fault"
)

// Store keeps content. Any number of goroutines and processes may use one.
type Store interface {
	// Put stores what r gives, at most limit bytes (fault.TooLarge), if check agrees; check may be nil. When it returns without an
	// error, the content survives a power cut. With an error, nothing is left. Putting what is there already is fine.
	Put(ctx context.Context, r io.Reader, limit int64, check Check) (sha256 string, size int64, err error)
	// Open returns the content of a SHA-256 in lower-case hex, or fault.NotFound.
	Open(sha256 string) (io.ReadSeekCloser, error)
}

// Check looks at content before it is stored.
type Check func(content io.ReaderAt, sha256 string, size int64) error

// Dir is a Store in a directory: ab/abcd… holds the content of SHA-256 abcd…, tmp what is being written.
type Dir struct{ root *os.Root }

const tmp = "tmp"

// cleanAfter is the age of temporary files that are removed: a younger one may be that of another process, which is about to lock it.
const cleanAfter = time.Minute

// Open opens the store in directory path, which is made if it is missing, and removes what writers left there that died.
func Open(path string) (*Dir, error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, fmt.Errorf("make the wheel store: %w", err)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("open the wheel store: %w", err)
	}
	d := &Dir{root}
	if err := d.clean(); err != nil {
		return nil, errors.Join(fmt.Errorf("clean the wheel store: %w", err), root.Close())
	}
	return d, nil
}

// Close ends the use of the directory.
func (d *Dir) Close() error { return d.root.Close() }

// Writable says why nothing could be stored now, by writing something.
func (d *Dir) Writable() (err error) {
	name := tmp + "/" + rand.Text()
	f, err := d.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	_, err = f.Write(make([]byte, 16<<10))
	return errors.Join(err, f.Close(), d.root.Remove(name))
}

// clean removes temporary files that no process holds.
func (d *Dir) clean() error {
	if err := d.root.MkdirAll(tmp, 0o755); err != nil {
		return err
	}
	entries, err := fs.ReadDir(d.root.FS(), tmp)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := tmp + "/" + e.Name()
		f, err := d.root.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // its writer was quicker
		}
		if err != nil {
			return err
		}
		if info, err := f.Stat(); err == nil && time.Since(info.ModTime()) < cleanAfter {
			f.Close()
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			err = d.root.Remove(name)
		}
		f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Put implements Store.
func (d *Dir) Put(ctx context.Context, r io.Reader, limit int64, check Check) (sum string, size int64, err error) {
	name := tmp + "/" + rand.Text()
	f, err := d.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	if err != nil {
		return "", 0, fmt.Errorf("store: %w", err)
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			sum, size = "", 0
			_ = d.root.Remove(name) // it is not there any more where only the end failed
		}
	}()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil { // see clean
		return "", 0, fmt.Errorf("store: %w", err)
	}
	hash := sha256.New()
	size, err = io.Copy(io.MultiWriter(f, hash), io.LimitReader(reader{ctx, r}, limit+1))
	if err != nil {
		return "", 0, fmt.Errorf("store: %w", err)
	}
	if size > limit {
		return "", 0, fault.New(fault.TooLarge, "The file is larger than %d bytes, which is the most here.", limit)
	}
	sum = hex.EncodeToString(hash.Sum(nil))
	if check != nil {
		if err := check(f, sum, size); err != nil {
			return "", 0, err
		}
	}
	if err := d.place(f, name, sum); err != nil {
		return "", 0, fmt.Errorf("store: %w", err)
	}
	return sum, size, nil
}

// place moves a written file to its name, durably.
func (d *Dir) place(f *os.File, name, sum string) error {
	if err := f.Sync(); err != nil {
		return err
	}
	folder := sum[:2]
	if err := d.root.Mkdir(folder, 0o755); err == nil {
		if err := d.sync("."); err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := d.root.Rename(name, folder+"/"+sum); err != nil {
		return err
	}
	return d.sync(folder)
}

func (d *Dir) sync(folder string) error {
	f, err := d.root.Open(folder)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

var hashForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Open implements Store.
func (d *Dir) Open(sum string) (io.ReadSeekCloser, error) {
	if !hashForm.MatchString(sum) {
		return nil, fault.New(fault.NotFound, "There is no content of this SHA-256.")
	}
	f, err := d.root.Open(sum[:2] + "/" + sum)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "There is no content of this SHA-256.")
	}
	if err != nil {
		return nil, fmt.Errorf("open from the store: %w", err)
	}
	return f, nil
}

// reader ends with ctx.
type reader struct {
	ctx context.Context
	io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}
