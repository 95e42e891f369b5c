package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/wheelrefinery/refinery/api"
)

// book keeps on disk which jobs this process holds, so that the next one hands back at once what a killed one held. Each process has a
// folder of its own with a locked file in it; what is in a folder without a lock belongs to nobody.
type book struct {
	dir  string
	lock *os.File
}

const lockName = "lock"

// openBook begins the book of this process in dir.
func openBook(dir string) (*book, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("the worker's book: %w", err)
	}
	own, err := os.MkdirTemp(dir, "")
	if err != nil {
		return nil, fmt.Errorf("the worker's book: %w", err)
	}
	lock, err := lockFile(own)
	if err != nil {
		return nil, fmt.Errorf("the worker's book: %w", err)
	}
	return &book{own, lock}, nil
}

// lockFile takes the lock of a folder, which the kernel takes back when the process dies.
func lockFile(folder string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(folder, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// note writes a job down; strike takes it out again.
func (b *book) note(ref api.JobRef) (strike func() error, err error) {
	data, err := json.Marshal(ref)
	if err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(b.dir, "*.json")
	if err != nil {
		return nil, err
	}
	if _, err := f.Write(data); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() error { return os.Remove(f.Name()) }, f.Close()
}

// close ends the book. What is still in it is handed back by the next process.
func (b *book) close() error {
	if err := os.Remove(filepath.Join(b.dir, lockName)); err != nil {
		return errors.Join(err, b.lock.Close())
	}
	err := b.lock.Close()
	if left := os.Remove(b.dir); left != nil && !errors.Is(left, unix.ENOTEMPTY) {
		err = errors.Join(err, left)
	}
	return err
}

// handBack releases what processes that are gone held.
func (w *Worker) handBack(ctx context.Context, dir string) error {
	folders, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range folders {
		folder := filepath.Join(dir, f.Name())
		lock, err := lockFile(folder)
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, fs.ErrNotExist) {
			continue // its process lives, or another was quicker
		}
		if err == nil {
			err = errors.Join(w.handBackAll(ctx, folder), lock.Close())
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (w *Worker) handBackAll(ctx context.Context, folder string) error {
	files, err := filepath.Glob(filepath.Join(folder, "*.json"))
	if err != nil {
		return err
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		var ref api.JobRef
		if err := json.Unmarshal(data, &ref); err == nil { // half written: the process died before the job began
			if err := w.release(ctx, ref, "the worker was started anew"); err != nil && !isLost(err) {
				return err
			}
			w.Logger.Info("handed back what an earlier process held", "build", ref.Build.Name, "run", ref.RunID, "attempt", ref.Attempt)
		}
	}
	return os.RemoveAll(folder)
}

// release hands a job back.
func (w *Worker) release(ctx context.Context, ref api.JobRef, reason string) error {
	if ref.Kind == api.JobKindPlan {
		return w.report(ctx, api.PlanReport{Worker: w.ID, RunID: ref.RunID, Attempt: ref.Attempt, Released: true, Reason: reason})
	}
	return w.result(ctx, api.ResultReport{
		Worker: w.ID, Build: ref.Build, Attempt: ref.Attempt, Status: api.ResultStatusReleased, Reason: reason,
	})
}
