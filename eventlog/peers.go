package eventlog

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/wheelrefinery/refinery/internal/pause"
)

const (
	channel       = "refinery_events"
	tellAtMost    = 5 * time.Millisecond   // between two messages to other processes
	tellAtLeast   = time.Second            // so that they know that somebody is there
	unwatched     = 5 * time.Second        // without a message of a process that watches: there is none
	headPoll      = time.Second            // backs the messages
	lookUpAtMost  = 5 * time.Millisecond   // between two looks for outcomes
	outcomePoll   = 100 * time.Millisecond // likewise
	reconnectWait = 500 * time.Millisecond
)

// news is what a process tells the others of itself: a hint that saves them a poll. One that is lost does no harm.
type news struct {
	Owner   string              `json:"o"`
	Watches bool                `json:"e,omitempty"` // followers that run elsewhere
	Head    int64               `json:"h"`           // the last position that it knows; outcomes may have been recorded without events
	Wanted  int64               `json:"w,omitempty"` // somebody waits for this position
	Moved   map[string][2]int64 `json:"m,omitempty"` // its followers that have moved: position, epoch
	Touched []string            `json:"t,omitempty"` // see Touch
}

// tell has other processes told soon.
func (l *Log) tell() {
	select {
	case l.notify <- struct{}{}:
	default: // it is due
	}
}

// tellMoves is tell for what is of use only to a process that watches followers of this one.
func (l *Log) tellMoves() {
	if time.Since(time.Unix(0, l.watchedAt.Load())) < unwatched {
		l.tell()
	}
}

// unsaid is the news since the last time.
func (l *Log) unsaid() news {
	p := &l.progress
	p.mu.Lock()
	defer p.mu.Unlock()
	n := news{Owner: l.owner, Head: l.Head(), Wanted: p.wanted, Moved: map[string][2]int64{}}
	for _, s := range p.at {
		n.Watches = n.Watches || s.asked && !s.here
	}
	for name := range p.unsaid {
		if s := p.at[name]; s != nil && s.here {
			n.Moved[name] = [2]int64{s.position, s.epoch}
		}
	}
	for name := range p.touched {
		n.Touched = append(n.Touched, name)
	}
	clear(p.unsaid)
	clear(p.touched)
	return n
}

// notifier tells other processes, never inside an append: a notify in a transaction takes a database-wide lock at commit. Nor does it
// wait for the disk, which the next append wants.
func (l *Log) notifier(ctx context.Context) {
	for {
		select {
		case <-l.notify:
		case <-time.After(tellAtLeast):
		case <-ctx.Done():
			return
		}
		text, err := json.Marshal(l.unsaid())
		if err == nil {
			_, err = l.pool.Exec(ctx, `select set_config('synchronous_commit', 'off', true), pg_notify($1, $2)`, channel, string(text))
		}
		if err != nil && ctx.Err() == nil {
			l.logger.Warn("other processes were not told; they poll", "error", err)
		}
		pause.For(ctx, tellAtMost)
	}
}

// listener learns what other processes tell, from when this one wants to know: each message costs Postgres a small transaction for each
// process that listens. Until then it looks for the head.
func (l *Log) listener(ctx context.Context) {
	for listens := false; !listens && ctx.Err() == nil; {
		var head int64
		if err := l.pool.QueryRow(ctx, `select position from head`).Scan(&head); err != nil && ctx.Err() == nil {
			l.logger.Warn("the head of the log was not read", "error", err)
		}
		l.tail.saw(head)
		select {
		case <-l.curious:
			listens = true
		case <-time.After(headPoll):
		case <-ctx.Done():
		}
	}
	for ctx.Err() == nil {
		if err := l.listen(ctx); err != nil && ctx.Err() == nil {
			l.logger.Warn("listening to other processes was interrupted", "error", err)
			pause.For(ctx, reconnectWait)
		}
	}
}

func (l *Log) listen(ctx context.Context) error {
	conn, err := l.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	// A connection that listens must not go back to the pool.
	c := conn.Hijack()
	defer c.Close(context.WithoutCancel(ctx))
	if _, err := c.Exec(ctx, `listen `+channel); err != nil {
		return err
	}
	l.progress.forget() // Postgres may have lost what followers wrote last, which does not wait for the disk
	l.tell()            // that there is somebody to tell
	for {
		var head int64
		if err := c.QueryRow(ctx, `select position from head`).Scan(&head); err != nil {
			return err
		}
		l.tail.saw(head)
		for end := time.Now().Add(headPoll); time.Now().Before(end); {
			poll, cancel := context.WithDeadline(ctx, end)
			n, err := c.WaitForNotification(poll)
			cancel()
			switch {
			case err == nil:
				l.hear(n)
			case ctx.Err() != nil:
				return nil
			case !errors.Is(err, context.DeadlineExceeded):
				return err
			}
		}
	}
}

func (l *Log) hear(message *pgconn.Notification) {
	var n news
	if err := json.Unmarshal([]byte(message.Payload), &n); err != nil || n.Owner == l.owner {
		return
	}
	if n.Watches {
		l.watchedAt.Store(time.Now().UnixNano())
	}
	l.tail.saw(n.Head)
	l.progress.want(n.Wanted)
	l.progress.told(n)
	select {
	case l.heard <- struct{}{}:
	default:
	}
}

// told notes what another process tells of its followers.
func (p *progress) told(n news) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, moved := range n.Moved {
		position, epoch := moved[0], moved[1]
		s, ok := p.at[name]
		if !ok || !s.asked || epoch < s.epoch || epoch == s.epoch && (s.here || position <= s.position) {
			continue
		}
		s.version++
		if s.epoch = epoch; !s.here {
			s.position = position
			s.woken()
		}
	}
	for _, name := range n.Touched {
		if s := p.at[name]; s != nil {
			s.version++
		}
	}
}

// resolver looks for the outcomes that other processes recorded: when one of them has told something, and now and then.
func (l *Log) resolver(ctx context.Context) {
	poll := time.NewTicker(outcomePoll)
	defer poll.Stop()
	for {
		select {
		case <-l.heard:
		case <-poll.C:
		case <-ctx.Done():
			return
		}
		ids := l.expected()
		if len(ids) == 0 {
			continue
		}
		if err := l.lookUp(ctx, ids); err != nil && ctx.Err() == nil {
			l.logger.Warn("outcomes were not read; trying again", "error", err)
			pause.For(ctx, reconnectWait)
		}
		pause.For(ctx, lookUpAtMost)
	}
}

func (l *Log) lookUp(ctx context.Context, ids []uuid.UUID) error {
	ctx, cancel := context.WithTimeout(ctx, reconnectWait)
	defer cancel()
	found, err := l.Outcomes(ctx, ids...)
	for _, o := range found {
		l.resolve(o)
	}
	return err
}
