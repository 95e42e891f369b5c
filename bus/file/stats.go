package file

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wheelrefinery/refinery/bus"
)

// Stats reads what it tells from the directory, so that it knows of other processes too, and of the groups of this one from them.
func (b *fileBus) Stats() ([]bus.Stats, error) {
	names, err := b.names()
	if err != nil {
		return nil, fmt.Errorf("bus: list topics: %w", err)
	}
	var all []bus.Stats
	for _, name := range names {
		t, err := b.topic(name)
		if err != nil {
			return nil, err
		}
		one, err := t.stats()
		if err != nil {
			return nil, fmt.Errorf("bus: look at topic %s: %w", name, err)
		}
		all = append(all, one...)
	}
	return all, nil
}

// names lists the topics that there are.
func (b *fileBus) names() ([]string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, bus.ErrClosed
	}
	entries, err := fs.ReadDir(b.root.FS(), ".")
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && bus.CheckName("topic", e.Name()) == nil {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// published is when the first message at a position or after it was published; zero: there is none.
func (t *topic) published(position int64) (time.Time, error) {
	c := newCursor(t, position)
	r, _, err := c.read()
	if err = errors.Join(err, c.close()); err != nil || r == nil {
		return time.Time{}, err
	}
	return r.Time, nil
}

func (t *topic) stats() ([]bus.Stats, error) {
	bases, err := t.segments()
	if err != nil {
		return nil, err
	}
	var first, end int64
	if len(bases) > 0 {
		first, end = bases[0], bases[len(bases)-1]
		info, err := t.root.Stat(segmentName(end))
		if err != nil {
			return nil, err
		}
		end += info.Size()
	}
	groups, err := t.list("groups")
	if err != nil {
		return nil, err
	}
	if len(groups) == 0 {
		return []bus.Stats{{Topic: t.name, Bytes: end - first}}, nil
	}
	slices.Sort(groups)
	var all []bus.Stats
	for _, name := range groups {
		s := bus.Stats{Topic: t.name, Group: name}
		offset, _ := t.readOffset(name) // one that cannot be read starts anew, at the oldest
		t.mu.Lock()
		if g := t.groups[name]; g != nil {
			if now := g.shown.Load(); now != nil {
				offset, s.Unacked, s.Oldest = now.offset, now.unacked, now.oldest
			}
		}
		t.mu.Unlock()
		if s.Bytes = max(0, end-max(offset, first)); s.Bytes > 0 && s.Oldest.IsZero() {
			if s.Oldest, err = t.published(offset); err != nil {
				return nil, err
			}
		}
		all = append(all, s)
	}
	return all, nil
}

// probeBytes is more than a file system keeps beside its blocks, so that a full disk is found out.
const probeBytes = 16 << 10

// Check writes a file, durably, and takes the lock under which commands are published.
func (b *fileBus) Check(ctx context.Context) error {
	t, err := b.topic(bus.TopicCommands)
	if err != nil {
		return err
	}
	if err := t.probe(); err != nil {
		return fmt.Errorf("bus: write: %w", err)
	}
	lock, err := openLock(t.root, "lock")
	if err != nil {
		return fmt.Errorf("bus: %w", err)
	}
	defer lock.Close() // which unlocks
	for {
		err := flock(lock, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("bus: lock: %w", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("bus: another process holds the lock: %w", ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

func (t *topic) probe() (err error) {
	name := "probe-" + rand.Text() // another process may be at it too
	f, err := t.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, probeBytes))
	if err == nil {
		err = t.tuning.sync(f)
	}
	return errors.Join(err, f.Close(), t.root.Remove(name))
}
