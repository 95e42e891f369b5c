package file

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/wheelrefinery/refinery/bus/gather"
)

// maxBatch is how many bytes the writer takes into one batch, but for a single larger request.
const maxBatch = 8 << 20

// writer appends to a topic for one process: all that waits with one write, and one sync.
type writer struct {
	topic                  *topic
	*gather.Writer[[]byte] // lines, which stay together

	// Owned by the goroutine. The token stands in the lock file as long as no other writer wrote since; while it does,
	// file, base and size are right and the directory need not be looked at.
	token string
	lock  *os.File
	file  *os.File // the last segment
	base  int64
	size  int64 // of its good part
	buf   []byte
	seal  int64 // not 0: file must not be written to any more; the next segment starts here
}

func startWriter(t *topic) (*writer, error) {
	lock, err := openLock(t.root, "lock")
	if err != nil {
		return nil, err
	}
	w := &writer{topic: t, lock: lock, token: rand.Text()}
	w.Writer = gather.New(maxBatch, w.write)
	return w, nil
}

// close writes what waits and ends the writer.
func (w *writer) close() error {
	w.Close()
	if w.file != nil {
		return errors.Join(w.file.Close(), w.lock.Close())
	}
	return w.lock.Close()
}

// write makes a batch durable. If it fails, lines of it may still be delivered.
func (w *writer) write(batch []gather.Request[[]byte]) {
	lines := batch[0].What
	if len(batch) > 1 {
		w.buf = w.buf[:0]
		for _, r := range batch {
			w.buf = append(w.buf, r.What...)
		}
		lines = w.buf
	}
	err := w.commit(lines)
	for _, r := range batch {
		r.Answer(err)
	}
	w.topic.wake()
}

// commit appends lines durably.
func (w *writer) commit(lines []byte) (err error) {
	if err := flock(w.lock, unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock topic: %w", err)
	}
	defer func() { err = errors.Join(err, flock(w.lock, unix.LOCK_UN)) }()
	if err := w.prepare(); err != nil {
		return err
	}
	_, err = w.topic.tuning.writeAt(w.file, lines, w.size)
	if err == nil {
		err = w.topic.tuning.sync(w.file)
	}
	if err != nil {
		// After a failed fsync the kernel may have dropped the pages and call the file clean, so that the next fsync
		// proves nothing about it. And a reader may have seen what was written, so its positions are used up. A new
		// segment beyond them is right in both cases, and for a failed write too.
		w.seal = w.base + w.size + int64(len(lines))
		return errors.Join(err, w.next())
	}
	w.size += int64(len(lines))
	return nil
}

// prepare makes w.file the segment to append to.
func (w *writer) prepare() error {
	held := make([]byte, len(w.token))
	if _, err := w.lock.ReadAt(held, 0); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read lock: %w", err)
	}
	if string(held) != w.token || w.file == nil {
		if err := w.reopen(); err != nil {
			return fmt.Errorf("open last segment: %w", err)
		}
	}
	if w.seal == 0 && w.size >= w.topic.tuning.segmentSize {
		w.seal = w.base + w.size
	}
	if w.seal != 0 {
		return w.next()
	}
	return nil
}

// reopen finds the end of the topic after another process wrote to it, or died writing to it.
func (w *writer) reopen() error {
	if _, err := w.lock.WriteAt([]byte(w.token), 0); err != nil {
		return err
	}
	bases, err := w.topic.segments()
	if err != nil {
		return err
	}
	offsets, err := w.topic.offsets()
	if err != nil {
		return err
	}
	// An offset beyond the end: what a group consumed was lost with the machine's power. The group would start in the
	// middle of what is written next, if that did not start where the group stands.
	reached := slices.Max(append(offsets, 0))
	if w.file != nil {
		if err := w.file.Close(); err != nil {
			return err
		}
		w.file = nil
	}
	w.seal = 0
	if len(bases) == 0 {
		return w.create(reached)
	}
	w.base = bases[len(bases)-1]
	f, err := w.topic.root.OpenFile(segmentName(w.base), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if w.size, err = cutTorn(f); err != nil {
		return errors.Join(err, f.Close())
	}
	w.file = f
	if reached > w.base+w.size {
		w.seal = reached
	}
	return nil
}

// next seals the segment and goes on at the position w.seal.
func (w *writer) next() error {
	old, size := w.file, w.size
	if err := w.create(w.seal); err != nil {
		return fmt.Errorf("create segment: %w", err) // w.seal stays: it is tried again before anything is written
	}
	w.seal = 0
	// Only now, with the segment sealed, may its end move back.
	if err := errors.Join(old.Truncate(size), old.Close()); err != nil {
		return fmt.Errorf("seal segment: %w", err)
	}
	if err := w.topic.trim(); err != nil {
		w.topic.logger.Error("Old bus segments could not be removed", "error", err)
	}
	return nil
}

// create starts the segment at a position. It and its directory entry are durable when something in it is.
func (w *writer) create(base int64) error {
	name := segmentName(base)
	f, err := w.topic.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := syncDir(w.topic.root, "segments"); err != nil {
		return errors.Join(err, f.Close(), w.topic.root.Remove(name))
	}
	w.file, w.base, w.size = f, base, 0
	return nil
}

// cutTorn cuts what follows the last newline, which a writer that died left, and returns the size.
func cutTorn(f *os.File) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	end, buf := info.Size(), make([]byte, 64<<10)
	for end > 0 {
		n := min(end, int64(len(buf)))
		if _, err := f.ReadAt(buf[:n], end-n); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(buf[:n], '\n'); i >= 0 {
			end += int64(i) + 1 - n
			break
		}
		end -= n
	}
	if end < info.Size() {
		return end, f.Truncate(end)
	}
	return end, nil
}
