package file

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/wheelrefinery/refinery/bus"
)

// topic is one process's view of a topic's directory.
type topic struct {
	name   string
	root   *os.Root
	logger *slog.Logger
	tuning *tuning
	writer *writer

	mu     sync.Mutex
	groups map[string]*group // those with a subscription in this process
}

func openTopic(parent *os.Root, name string, logger *slog.Logger, tn *tuning) (*topic, error) {
	for _, dir := range []string{name, name + "/segments", name + "/groups"} {
		if err := makeDir(parent, dir); err != nil {
			return nil, err
		}
	}
	root, err := parent.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	t := &topic{name: name, root: root, logger: logger.With("topic", name), tuning: tn, groups: map[string]*group{}}
	if t.writer, err = startWriter(t); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return t, nil
}

// close ends the topic, whose subscriptions must have ended before.
func (t *topic) close() error {
	return errors.Join(t.writer.close(), t.root.Close())
}

// makeDir creates a directory whose parent exists, durably.
func makeDir(root *os.Root, dir string) error {
	if err := root.Mkdir(dir, 0o700); errors.Is(err, fs.ErrExist) {
		return nil
	} else if err != nil {
		return err
	}
	return syncDir(root, path.Dir(dir))
}

func syncDir(root *os.Root, dir string) error {
	f, err := root.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// flock calls flock(2) until no signal interrupts it.
func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func openLock(root *os.Root, name string) (*os.File, error) {
	return root.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
}

// locked runs f while this process alone may change the topic's segments and set of groups.
func (t *topic) locked(f func() error) (err error) {
	lock, err := openLock(t.root, "lock")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }() // closing unlocks
	if err := flock(lock, unix.LOCK_EX); err != nil {
		return err
	}
	return f()
}

func segmentName(base int64) string { return fmt.Sprintf("segments/%020d.jsonl", base) }

// segments returns the positions at which the segments start, in order.
func (t *topic) segments() ([]int64, error) {
	names, err := t.list("segments")
	if err != nil {
		return nil, err
	}
	var bases []int64
	for _, name := range names {
		digits, ok := strings.CutSuffix(name, ".jsonl")
		if base, err := strconv.ParseInt(digits, 10, 64); ok && err == nil && segmentName(base) == "segments/"+name {
			bases = append(bases, base)
		}
	}
	slices.Sort(bases)
	return bases, nil
}

func (t *topic) list(dir string) ([]string, error) {
	f, err := t.root.Open(dir)
	if err != nil {
		return nil, err
	}
	names, err := f.Readdirnames(-1)
	return names, errors.Join(err, f.Close())
}

// offsets returns the offset of every group that ever subscribed; 0 for one whose offset cannot be read, so that nothing is
// removed which it may need.
func (t *topic) offsets() ([]int64, error) {
	names, err := t.list("groups")
	if err != nil {
		return nil, err
	}
	offsets := make([]int64, len(names))
	for i, name := range names {
		offsets[i], _ = t.readOffset(name)
	}
	return offsets, nil
}

func (t *topic) readOffset(group string) (int64, error) {
	b, err := t.root.ReadFile("groups/" + group + "/offset")
	if err != nil {
		return 0, err
	}
	offset, err := strconv.ParseInt(strings.TrimSuffix(string(b), "\n"), 10, 64)
	if err != nil || offset < 0 {
		return 0, fmt.Errorf("offset of group %s is not a position: %q", group, b)
	}
	return offset, nil
}

// writeOffset replaces a group's offset atomically. A power failure may bring an older offset back; that costs a
// redelivery, which syncing ten times a second would cost more than.
func (t *topic) writeOffset(group string, offset int64) error {
	name := "groups/" + group + "/offset"
	if err := t.root.WriteFile(name+".tmp", []byte(strconv.FormatInt(offset, 10)+"\n"), 0o600); err != nil {
		return err
	}
	return t.root.Rename(name+".tmp", name)
}

// register makes a group known, so that what it has not seen is kept. A new group starts at the oldest message.
func (t *topic) register(group string) error {
	return t.locked(func() error {
		dir := "groups/" + group
		if err := makeDir(t.root, dir); err != nil {
			return err
		}
		if _, err := t.root.Stat(dir + "/offset"); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := t.writeOffset(group, 0); err != nil {
			return err
		}
		return syncDir(t.root, dir)
	})
}

// trim removes the segments that every group has passed. Call it with the topic locked.
func (t *topic) trim() error {
	passed, err := t.passed()
	if err != nil {
		return err
	}
	for _, base := range passed {
		if err := t.root.Remove(segmentName(base)); err != nil {
			return err
		}
	}
	return nil
}

// unheardSegments is how many segments stay of a topic that only tells what the event log knows anyway, while nobody subscribes to it.
const unheardSegments = 4

// passed returns the sealed segments that every group has passed.
func (t *topic) passed() ([]int64, error) {
	bases, err := t.segments()
	if err != nil || len(bases) < 2 {
		return nil, err
	}
	offsets, err := t.offsets()
	if err != nil {
		return nil, err
	}
	if len(offsets) == 0 {
		if t.name != bus.TopicBuildRequested && t.name != bus.TopicPoison {
			return nil, nil
		}
		return bases[:max(0, len(bases)-unheardSegments)], nil
	}
	reached := slices.Min(offsets)
	n := 0
	for n+1 < len(bases) && bases[n+1] <= reached {
		n++
	}
	return bases[:n], nil
}

// join adds a subscription to the group, which runs while it has any.
func (t *topic) join(name string) (*group, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	g := t.groups[name]
	if g == nil {
		if err := t.register(name); err != nil {
			return nil, err
		}
		g = newGroup(t, name)
		t.groups[name] = g
		go g.run()
	}
	g.members++
	return g, nil
}

// leave takes a subscription away, whose results have all been sent. After the last one it returns when the group has
// written its offset and let its lock go.
func (t *topic) leave(g *group) {
	t.mu.Lock()
	g.members--
	last := g.members == 0
	if last {
		delete(t.groups, g.name)
	}
	t.mu.Unlock()
	if last {
		close(g.stop)
		<-g.stopped
	}
}

// wake tells the groups of this process that there is something to read.
func (t *topic) wake() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, g := range t.groups {
		select {
		case g.wake <- struct{}{}:
		default:
		}
	}
}
