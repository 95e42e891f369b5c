package redis

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/wheelrefinery/refinery/bus/delivery"
)

const (
	// storeInterval is how often, at most, it is stored what is passed.
	storeInterval = 200 * time.Millisecond
	// errorInterval is the pause after an error of the server.
	errorInterval = 500 * time.Millisecond
	// leaveTime bounds what Close waits for the server.
	leaveTime = 2 * time.Second
)

// shard is one that this process holds the lease of.
type shard struct {
	number  int
	window  *delivery.Window[string]
	read    string    // id of the last entry that was read
	stored  string    // until where the server knows that it is passed
	leaving time.Time // since when it is to be given back; zero: it stays
	tried   time.Time // when it was to be given back last
}

// consumer reads a topic for a group, as one member of it. One goroutine owns all state and talks to the subscriptions by the queue's
// channels; the reader and the clerk, each a goroutine too, wait for the server for it.
type consumer struct {
	bus           *redisBus
	topic, group  string
	me            string
	streams       []string
	logger        *slog.Logger
	subscriptions int // guarded by bus.mu

	stop    chan struct{}
	stopped chan struct{}

	queue  *delivery.Queue[string] // positions are ids of entries
	shards []*shard                // by number; nil: not ours

	reader  *reader
	reading bool // the reader is at work

	clerk   chan func() func() // calls that wait for the server; what they return is run here
	written chan func()
	busy    bool // the clerk is at work

	trusted time.Time // until when the leases hold
	anew    bool      // it holds no shard, and the server does not know
	keepAt  time.Time
	storeAt time.Time
	share   int
	hunger  int  // how often it was looked for more shards in vain
	failing bool // told once

	shown atomic.Pointer[shown]
}

// shown is what others may know of a consumer.
type shown struct {
	unacked int
	oldest  time.Time
}

// newConsumer makes one that is the member me, as which a process that is dead may have been registered.
func newConsumer(b *redisBus, topic, group, me string) *consumer {
	streams := streamNames(topic)
	c := &consumer{
		bus: b, topic: topic, group: group, me: me, streams: streams, logger: b.logger.With("topic", topic, "group", group),
		stop: make(chan struct{}), stopped: make(chan struct{}), queue: delivery.NewQueue[string](b.limits), shards: make([]*shard, len(streams)),
		clerk: make(chan func() func()), written: make(chan func(), 1), anew: true,
	}
	c.reader = newReader(c)
	return c
}

func (c *consumer) run() {
	defer close(c.stopped)
	go c.reader.run()
	go func() {
		for job := range c.clerk {
			c.written <- job()
		}
		close(c.written)
	}()
	c.consume()
	c.reader.close()
	close(c.clerk)
	for range c.written { // of the last job; what it found is of no use any more
	}
	c.queue.SettleWaiting() // acks of the last moment
	ctx, cancel := context.WithTimeout(context.Background(), leaveTime)
	defer cancel()
	passed := map[int]string{}
	for _, s := range c.shards {
		if s != nil {
			passed[s.number] = s.window.Passed()
			c.queue.Drop(s.window)
		}
	}
	_, err := c.store(ctx, passed, true)
	if err = errors.Join(err, c.farewell(ctx)); err != nil {
		c.logger.Warn("What was acknowledged last could not be stored: it comes again", "error", err)
	}
}

func (c *consumer) consume() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		c.show()
		c.work(time.Now())
		timer.Reset(time.Until(c.deadline()))
		select {
		case <-c.stop:
			return
		case c.queue.Ready() <- c.queue.Head():
			c.queue.Handed()
		case r := <-c.queue.Results():
			c.queue.SettleAll(r)
		case f := <-c.written:
			c.busy = false
			f()
		case got := <-c.reader.replies:
			c.reading = false
			for _, g := range got {
				c.take(g)
			}
		case <-timer.C:
		}
	}
}

// take takes what was read of a shard.
func (c *consumer) take(g batch) {
	if c.shards[g.shard.number] != g.shard {
		return // lost meanwhile
	}
	for _, e := range g.entries {
		g.shard.read = e.Pos
		c.queue.Add(g.shard.window, e)
	}
}

// work does what is due.
func (c *consumer) work(now time.Time) {
	c.queue.Again(now)
	if !c.trusted.IsZero() && now.After(c.trusted) {
		c.trusted, c.anew = time.Time{}, true
		c.loseAll()
	}
	if !c.busy {
		c.next(now)
	}
	if !c.reading && c.queue.Room() {
		var mine []*shard
		for _, s := range c.shards {
			if s != nil && s.leaving.IsZero() {
				mine = append(mine, s)
			}
		}
		if len(mine) > 0 {
			c.reading = true
			c.reader.read(mine)
		}
	}
}

// next gives the clerk its next job.
func (c *consumer) next(now time.Time) {
	switch {
	case !now.Before(c.keepAt):
		c.do(c.keepJob(now))
	case c.giveBack(now):
	case !now.Before(c.storeAt):
		c.storeAt = now.Add(storeInterval)
		passed := map[int]string{}
		for _, s := range c.shards {
			if s != nil && s.window.Passed() != s.stored {
				passed[s.number] = s.window.Passed()
			}
		}
		if len(passed) > 0 {
			c.do(c.storeJob(passed, false))
		}
	}
}

func (c *consumer) do(job func() func()) {
	c.busy = true
	c.clerk <- job
}

func (c *consumer) keepJob(now time.Time) func() func() {
	anew := c.anew
	return func() func() {
		k, err := c.keep(context.Background(), anew)
		return func() {
			if err != nil {
				c.keepAt = time.Now().Add(errorInterval)
				c.failed(err)
				return
			}
			if c.failing {
				c.failing = false
				c.logger.Info("The group is read again")
			}
			if c.anew && !anew { // let go meanwhile
				return
			}
			c.anew = false
			c.trusted = now.Add(leaseTrust)
			c.apply(k)
		}
	}
}

func (c *consumer) failed(err error) {
	if !c.failing {
		c.failing = true
		c.logger.Error("Redis does not answer a consumer group; trying again", "error", err)
	}
}

// apply makes the shards what the server says.
func (c *consumer) apply(k kept) {
	now, owned, staying := time.Now(), 0, 0
	for n, s := range c.shards {
		id, claimed := k.claimed[n]
		if s != nil && (claimed || !k.owned[n]) {
			c.lose(s)
			c.logger.Warn("A shard was lost to another process; what it holds of it comes again there", "shard", n)
		}
		if claimed {
			c.shards[n] = &shard{number: n, window: delivery.NewWindow(id), read: id, stored: id}
		}
		if s = c.shards[n]; s == nil {
			continue
		}
		owned++
		if !s.leaving.IsZero() && now.Sub(s.leaving) > drainTime {
			s.leaving = time.Time{}
			c.queue.Resume(s.window)
		}
		if s.leaving.IsZero() {
			staying++
		}
	}
	if k.share != c.share || len(k.claimed) > 0 {
		c.share, c.hunger = k.share, 0
	}
	c.keepAt = now.Add(keepInterval)
	if owned < k.share && c.hunger < mostHunger {
		c.hunger++
		c.keepAt = now.Add(hungryInterval)
	}
	// Those without messages go first, since they go at once; one that did not go lately is left in peace.
	for _, busy := range []bool{false, true} {
		for _, s := range c.shards {
			if staying <= k.share {
				return
			}
			if s != nil && s.leaving.IsZero() && (s.window.First() != nil) == busy && now.Sub(s.tried) > 10*drainTime {
				s.leaving, s.tried = now, now
				c.queue.Hold(s.window)
				staying--
			}
		}
	}
}

// giveBack gives back the shards that are to go and that no subscriber has a message of.
func (c *consumer) giveBack(now time.Time) bool {
	passed := map[int]string{}
	for _, s := range c.shards {
		if s != nil && !s.leaving.IsZero() && s.window.Flying() == 0 {
			passed[s.number] = s.window.Passed()
		}
	}
	if len(passed) > 0 {
		c.do(c.storeJob(passed, true))
	}
	return len(passed) > 0
}

func (c *consumer) storeJob(passed map[int]string, giveBack bool) func() func() {
	return func() func() {
		lost, err := c.store(context.Background(), passed, giveBack)
		return func() {
			if err != nil {
				c.storeAt = time.Now().Add(errorInterval)
				c.keepAt = c.storeAt // and whether a shard went is told then
				c.failed(err)
				return
			}
			for n, id := range passed {
				s := c.shards[n]
				switch {
				case s == nil:
				case giveBack:
					c.lose(s)
				default:
					s.stored = id
				}
			}
			for _, n := range lost {
				if s := c.shards[n]; s != nil {
					c.lose(s)
					c.logger.Warn("A shard was lost to another process; what it holds of it comes again there", "shard", n)
				}
			}
		}
	}
}

// lose ends the work on a shard.
func (c *consumer) lose(s *shard) {
	c.shards[s.number] = nil
	c.queue.Drop(s.window)
}

// loseAll ends the work on all shards, since the leases may have run out.
func (c *consumer) loseAll() {
	n := 0
	for _, s := range c.shards {
		if s != nil {
			c.lose(s)
			n++
		}
	}
	if n > 0 {
		c.logger.Warn("Redis did not answer for too long: other processes may have the shards of this one now", "shards", n)
	}
}

// deadline is when work has something to do by itself.
func (c *consumer) deadline() time.Time {
	next := time.Now().Add(keepInterval)
	for _, at := range []time.Time{c.queue.Due(), c.trusted} {
		if !at.IsZero() && at.Before(next) {
			next = at
		}
	}
	if c.busy {
		return next
	}
	if c.keepAt.Before(next) {
		next = c.keepAt
	}
	for _, s := range c.shards {
		if s != nil && s.window.Passed() != s.stored && c.storeAt.Before(next) {
			next = c.storeAt
		}
	}
	return next
}

func (c *consumer) show() {
	s := shown{unacked: c.queue.Unacked()}
	for _, one := range c.shards {
		if one == nil {
			continue
		}
		if first := one.window.First(); first != nil && (s.oldest.IsZero() || first.Time.Before(s.oldest)) {
			s.oldest = first.Time
		}
	}
	if last := c.shown.Load(); last == nil || *last != s {
		c.shown.Store(&s)
	}
}
