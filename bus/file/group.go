package file

import (
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wheelrefinery/refinery/bus"
	"github.com/wheelrefinery/refinery/bus/delivery"
)

const (
	// standbyInterval is how often a process that does not consume for its group tries to.
	standbyInterval = 25 * time.Millisecond
	// pollActive and pollIdle bound how often the topic is read for what other processes have published.
	pollActive = time.Millisecond
	pollIdle   = 25 * time.Millisecond
	// offsetInterval is how often, at most, an offset is written.
	offsetInterval = 100 * time.Millisecond
	// errorInterval is the pause after an error of the file system.
	errorInterval = time.Second
	// readBatch is how many messages are read before others are handed out.
	readBatch = 64
)

// group consumes a topic for a consumer group while this process holds the group's lock. One goroutine owns all state and
// talks to the subscriptions by channels.
type group struct {
	topic   *topic
	name    string
	logger  *slog.Logger
	members int // guarded by topic.mu

	wake    chan struct{} // something was published in this process
	stop    chan struct{}
	stopped chan struct{}

	cursor *cursor
	queue  *delivery.Queue[int64] // positions are those of lines
	window *delivery.Window[int64]

	more     bool          // there may be more to read
	poll     time.Duration // until that is assumed
	pollAt   time.Time
	written  int64 // offset
	offsetAt time.Time
	failedAt time.Time // when reading failed last

	shown atomic.Pointer[shown]
}

// shown is what others may know of a group.
type shown struct {
	offset  int64
	unacked int
	oldest  time.Time
}

func (g *group) show() {
	s := shown{offset: g.offset(), unacked: g.queue.Unacked()}
	if first := g.window.First(); first != nil {
		s.oldest = first.Time
	}
	if last := g.shown.Load(); last == nil || *last != s {
		g.shown.Store(&s)
	}
}

func newGroup(t *topic, name string) *group {
	return &group{
		topic: t, name: name, logger: t.logger.With("group", name),
		wake: make(chan struct{}, 1), stop: make(chan struct{}), stopped: make(chan struct{}),
		queue: delivery.NewQueue[int64](t.tuning.Limits), window: delivery.NewWindow[int64](0), poll: pollActive, more: true,
	}
}

func (g *group) run() {
	defer close(g.stopped)
	lock := g.acquire()
	if lock == nil {
		return
	}
	defer func() {
		if err := lock.Close(); err != nil { // closing unlocks
			g.logger.Error("Lock of a consumer group could not be released", "error", err)
		}
	}()
	offset, err := g.topic.readOffset(g.name)
	if err != nil {
		g.logger.Warn("Consumer group starts at the oldest message, since its offset cannot be read", "error", err)
	}
	g.cursor, g.written = newCursor(g.topic, offset), offset
	g.consume()
	g.queue.SettleWaiting() // acks of the last moment
	g.writeOffset()
	if err := g.cursor.close(); err != nil {
		g.logger.Error("Bus segment could not be closed", "error", err)
	}
}

// acquire waits for the group's lock; nil if the group ends before. The kernel gives the lock of a process that died to
// the next that asks.
func (g *group) acquire() *os.File {
	var lock *os.File
	for failed := false; ; {
		var err error
		if lock == nil {
			lock, err = openLock(g.topic.root, "groups/"+g.name+"/lock")
		}
		if err == nil {
			if err = flock(lock, unix.LOCK_EX|unix.LOCK_NB); err == nil {
				return lock
			}
		}
		if err != unix.EWOULDBLOCK && !failed {
			failed = true
			g.logger.Error("Consumer group cannot be locked; trying again", "error", err)
		}
		select {
		case <-g.stop:
			if lock != nil {
				if err := lock.Close(); err != nil {
					g.logger.Error("Lock file of a consumer group could not be closed", "error", err)
				}
			}
			return nil
		case <-time.After(standbyInterval):
		}
	}
}

// always is a channel that is ready to receive from.
var always = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

func (g *group) consume() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		g.read()
		g.show()
		var again chan struct{}
		if g.more && g.queue.Room() {
			again = always
		}
		timer.Reset(time.Until(g.deadline()))
		select {
		case <-g.stop:
			return
		case g.queue.Ready() <- g.queue.Head():
			g.queue.Handed()
		case r := <-g.queue.Results():
			g.queue.SettleAll(r)
			if g.offsetAt.IsZero() {
				g.offsetAt = time.Now().Add(offsetInterval)
			}
		case <-g.wake:
			g.more = true
		case <-again:
		case <-timer.C:
			g.tick(time.Now())
		}
	}
}

// read takes some messages from the topic.
func (g *group) read() {
	if !g.more {
		return
	}
	if time.Since(g.failedAt) < errorInterval {
		g.more, g.pollAt = false, g.failedAt.Add(errorInterval)
		return
	}
	for range readBatch {
		if !g.queue.Room() {
			return
		}
		rec, pos, err := g.cursor.read()
		if err != nil {
			g.logger.Error("Bus topic cannot be read; trying again", "error", err)
			g.failedAt = time.Now()
		}
		if rec == nil {
			g.more = false
			g.pollAt = time.Now().Add(g.poll)
			return
		}
		g.poll = pollActive
		g.queue.Add(g.window, &delivery.Entry[int64]{
			Pos: pos, Record: rec, Key: rec.Metadata[bus.KeyMetadata], Size: len(rec.Text) + len(rec.Base64), Time: rec.Time,
		})
	}
}

// deadline is when tick has something to do.
func (g *group) deadline() time.Time {
	next := g.pollAt
	if g.more { // reading waits for room, or for the pause after an error to end
		next = time.Now().Add(errorInterval)
	}
	if due := g.queue.Due(); !due.IsZero() && due.Before(next) {
		next = due
	}
	if !g.offsetAt.IsZero() && g.offsetAt.Before(next) {
		next = g.offsetAt
	}
	return next
}

func (g *group) tick(now time.Time) {
	if !g.more && !g.pollAt.After(now) {
		g.more = true
		g.poll = min(g.poll+time.Millisecond, pollIdle)
	}
	g.queue.Again(now)
	if !g.offsetAt.IsZero() && !g.offsetAt.After(now) {
		g.offsetAt = time.Time{}
		g.writeOffset()
	}
}

// offset is the position before which everything is acknowledged.
func (g *group) offset() int64 {
	if first := g.window.First(); first != nil {
		return first.Pos
	}
	return g.cursor.pos
}

// writeOffset stores the offset if it has moved, and removes the segments that it was the last to pass.
func (g *group) writeOffset() {
	offset := g.offset()
	if offset == g.written {
		return
	}
	if err := g.topic.writeOffset(g.name, offset); err != nil {
		g.logger.Error("Offset of a consumer group could not be written; trying again", "error", err)
		g.offsetAt = time.Now().Add(errorInterval)
		return
	}
	g.written = offset
	passed, err := g.topic.passed()
	if err == nil && len(passed) > 0 {
		err = g.topic.locked(g.topic.trim)
	}
	if err != nil {
		g.logger.Error("Old bus segments could not be removed", "error", err)
	}
}
