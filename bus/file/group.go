package file

import (
	"container/heap"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wheelrefinery/refinery/bus"
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
	// maxWindow bounds how many messages may be acknowledged before an older one is, each of which costs some bytes until
	// then and a redelivery after a crash.
	maxWindow = 1 << 17
	// readBatch is how many messages are read before others are handed out.
	readBatch = 64
)

type outcome int

const (
	acked outcome = iota
	nacked
	returned // the subscription ended
)

type result struct {
	entry   *entry
	outcome outcome
}

// entry is a message that was read and is not passed yet.
type entry struct {
	pos   int64
	rec   *record // nil once acknowledged
	key   string
	size  int
	nacks int
	due   time.Time // when it may be delivered again after a nack
}

// group consumes a topic for a consumer group while this process holds the group's lock. One goroutine owns all state and
// talks to the subscriptions by channels.
type group struct {
	topic   *topic
	name    string
	logger  *slog.Logger
	members int // guarded by topic.mu

	ready   chan *entry   // to the subscriptions
	results chan result   // from them; never full, since in-flight messages are bounded
	wake    chan struct{} // something was published in this process
	stop    chan struct{}
	stopped chan struct{}

	cursor   *cursor
	window   []*entry            // in order of position, from the oldest unacknowledged one on
	keys     map[string][]*entry // unacknowledged, in order; only the first of a key is anywhere else
	deliver  []*entry            // to be handed out
	delayed  entryHeap           // nacked
	inFlight int
	unacked  int
	bytes    int

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
	s := shown{offset: g.offset(), unacked: g.unacked}
	if len(g.window) > 0 {
		s.oldest = g.window[0].rec.Time
	}
	if last := g.shown.Load(); last == nil || *last != s {
		g.shown.Store(&s)
	}
}

func newGroup(t *topic, name string) *group {
	return &group{
		topic: t, name: name, logger: t.logger.With("group", name),
		ready: make(chan *entry), results: make(chan result, t.tuning.maxInFlight),
		wake: make(chan struct{}, 1), stop: make(chan struct{}), stopped: make(chan struct{}),
		keys: map[string][]*entry{}, poll: pollActive, more: true,
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
	for len(g.results) > 0 { // acks of the last moment
		g.settle(<-g.results)
	}
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
		var (
			ready chan *entry
			head  *entry
			again chan struct{}
		)
		if len(g.deliver) > 0 && g.inFlight < g.topic.tuning.maxInFlight {
			ready, head = g.ready, g.deliver[0]
		}
		if g.more && g.room() {
			again = always
		}
		timer.Reset(time.Until(g.deadline()))
		select {
		case <-g.stop:
			return
		case ready <- head:
			g.deliver = g.deliver[1:]
			g.inFlight++
		case r := <-g.results:
			g.settle(r)
			for len(g.results) > 0 {
				g.settle(<-g.results)
			}
		case <-g.wake:
			g.more = true
		case <-again:
		case <-timer.C:
			g.tick(time.Now())
		}
	}
}

// room says whether another message may be read.
func (g *group) room() bool {
	tn := g.topic.tuning
	return g.unacked < tn.maxUnacked && g.bytes < tn.maxReadAhead && len(g.window) < maxWindow
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
		if !g.room() {
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
		g.add(&entry{pos: pos, rec: rec, key: rec.Metadata[bus.KeyMetadata], size: len(rec.Text) + len(rec.Base64)})
	}
}

func (g *group) add(e *entry) {
	g.window = append(g.window, e)
	g.unacked++
	g.bytes += e.size
	queue := append(g.keys[e.key], e)
	g.keys[e.key] = queue
	if len(queue) == 1 {
		g.deliver = append(g.deliver, e)
	}
}

// settle notes what became of a message that was handed out.
func (g *group) settle(r result) {
	e := r.entry
	g.inFlight--
	switch r.outcome {
	case returned:
		g.deliver = append(g.deliver, e)
	case nacked:
		tn := g.topic.tuning
		wait := tn.maxBackoff
		if e.nacks < 16 {
			wait = min(tn.minBackoff<<e.nacks, tn.maxBackoff)
		}
		e.nacks++
		e.due = time.Now().Add(wait)
		heap.Push(&g.delayed, e)
	case acked:
		e.rec = nil
		g.unacked--
		g.bytes -= e.size
		if queue := g.keys[e.key][1:]; len(queue) > 0 {
			g.keys[e.key] = queue
			g.deliver = append(g.deliver, queue[0])
		} else {
			delete(g.keys, e.key)
		}
		for len(g.window) > 0 && g.window[0].rec == nil {
			g.window = g.window[1:]
		}
		if g.offsetAt.IsZero() {
			g.offsetAt = time.Now().Add(offsetInterval)
		}
	}
}

// deadline is when tick has something to do.
func (g *group) deadline() time.Time {
	next := g.pollAt
	if g.more { // reading waits for room, or for the pause after an error to end
		next = time.Now().Add(errorInterval)
	}
	if len(g.delayed) > 0 && g.delayed[0].due.Before(next) {
		next = g.delayed[0].due
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
	for len(g.delayed) > 0 && !g.delayed[0].due.After(now) {
		g.deliver = append(g.deliver, heap.Pop(&g.delayed).(*entry))
	}
	if !g.offsetAt.IsZero() && !g.offsetAt.After(now) {
		g.offsetAt = time.Time{}
		g.writeOffset()
	}
}

// offset is the position before which everything is acknowledged.
func (g *group) offset() int64 {
	if len(g.window) > 0 {
		return g.window[0].pos
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

// entryHeap orders entries by when they are due.
type entryHeap []*entry

func (h entryHeap) Len() int           { return len(h) }
func (h entryHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h entryHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *entryHeap) Push(e any)        { *h = append(*h, e.(*entry)) }
func (h *entryHeap) Pop() any {
	last := len(*h) - 1
	e := (*h)[last]
	*h = (*h)[:last]
	return e
}
