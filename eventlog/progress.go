package eventlog

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/wheelrefinery/refinery/internal/pause"
)

// progress knows how far followers are, and up to where somebody waits for them.
type progress struct {
	mu      sync.Mutex
	at      map[string]*standing
	wanted  int64
	wish    chan struct{}   // closed when wanted moves
	unsaid  map[string]bool // followers of this process that have moved since others were told
	touched map[string]bool // likewise, what was changed other than by Save
}

// standing is how far a follower is.
type standing struct {
	position int64 // known at once where it runs in this process, otherwise from what that process tells, and from its checkpoint
	epoch    int64
	version  uint64                  // of what it made: goes up whenever that may have changed
	here     bool                    // this process runs it
	asked    bool                    // its checkpoint is watched
	lose     context.CancelCauseFunc // ends it here
	moved    chan struct{}           // closed when what is known of its position changes; nil: nobody waits for it
}

// woken tells those who wait for it.
func (s *standing) woken() {
	if s.moved != nil {
		close(s.moved)
		s.moved = nil
	}
}

func (p *progress) init() {
	p.at, p.wish = map[string]*standing{}, make(chan struct{})
	p.unsaid, p.touched = map[string]bool{}, map[string]bool{}
}

// of is the standing of name; mu is held.
func (p *progress) of(name string) *standing {
	s, ok := p.at[name]
	if !ok {
		s = &standing{}
		p.at[name] = s
	}
	return s
}

// want says that somebody waits for position.
func (p *progress) want(position int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if position > p.wanted {
		p.wanted = position
		close(p.wish)
		p.wish = make(chan struct{})
	}
}

// pace lets a few events gather behind position while nobody waits for them: a transaction costs much more than an event.
func (p *progress) pace(ctx context.Context, position int64) {
	p.mu.Lock()
	wanted, wish := p.wanted, p.wish
	p.mu.Unlock()
	if wanted > position {
		return
	}
	t := time.NewTimer(paceFor)
	defer t.Stop()
	select {
	case <-wish:
	case <-t.C:
	case <-ctx.Done():
	}
}

// took notes that this process runs name from now on.
func (p *progress) took(name string, position, epoch int64, lose context.CancelCauseFunc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.of(name)
	s.epoch, s.lose = epoch, lose
	p.moved(name, position, true)
}

// set notes that a follower of this process has come to position, and whether it wrote something.
func (p *progress) set(name string, position int64, wrote bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.moved(name, position, wrote)
}

func (p *progress) moved(name string, position int64, wrote bool) {
	s := p.of(name)
	s.position, s.here = position, true
	if wrote {
		s.version++
	}
	p.unsaid[name] = true
	s.woken()
}

// drop notes that this process does not run name any more.
func (p *progress) drop(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.at[name]
	if !ok {
		return
	}
	switch {
	case !s.asked:
		delete(p.at, name)
	case s.here:
		s.here = false
		s.version++
	}
	s.woken()
}

// lost ends followers of this process whose leases others have.
func (p *progress) lost(names []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range names {
		if s, ok := p.at[n]; ok && s.here {
			s.lose(ErrFenced)
		}
	}
}

// names lists the followers of this process.
func (p *progress) names() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	names := make([]string, 0, len(p.at))
	for n, s := range p.at {
		if s.here {
			names = append(names, n)
		}
	}
	return names
}

// behind looks which of names do not cover position, as far as this process knows. moved is closed when the first of them moves, nil when
// there is none; elsewhere: another process runs it. unknown are those of other processes that nobody watches.
func (p *progress) behind(position int64, names []string) (moved <-chan struct{}, elsewhere bool, unknown []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range names {
		switch s, ok := p.at[n]; {
		case !ok || !s.here && !s.asked:
			unknown = append(unknown, n)
		case s.position < position && moved == nil:
			if s.moved == nil {
				s.moved = make(chan struct{})
			}
			moved, elsewhere = s.moved, !s.here
		}
	}
	return moved, elsewhere, unknown
}

// watched lists the followers that are watched, and says whether other processes run some of them.
func (p *progress) watched() (names []string, elsewhere bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for n, s := range p.at {
		if s.asked {
			names = append(names, n)
			elsewhere = elsewhere || !s.here
		}
	}
	return names, elsewhere
}

// saw notes a checkpoint as it was read. Another epoch is another feeder, or other tables. A feeder may be ahead of its checkpoint, by
// events that made it write nothing.
func (p *progress) saw(name string, position, epoch int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.at[name]
	if !ok {
		return
	}
	if epoch == s.epoch && (s.here || position <= s.position) {
		return
	}
	s.version++
	if s.epoch = epoch; !s.here {
		s.position = position
		s.woken()
	}
}

// forget gives up what is known of followers of other processes.
func (p *progress) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.at {
		if !s.here {
			s.position = 0
			s.version++
		}
	}
}

// Touch says that what followers made was changed other than by Save.
func (l *Log) Touch(names ...string) {
	l.progress.mu.Lock()
	for _, n := range names {
		l.progress.of(n).version++
		l.progress.touched[n] = true
	}
	l.progress.mu.Unlock()
	l.tellMoves()
}

// Watch has this process know at any time how far these followers are, wherever they run. It is for those whose checkpoint is never
// deleted; Covered watches what it is asked for.
func (l *Log) Watch(names ...string) { l.Covered(names...) }

// Covered is the last position that all of names are known to have covered, never more, and a version of what they made of the log: while
// it stays, their tables hold the same. What other processes do is known from checkpoints, which are read ten times a second.
func (l *Log) Covered(names ...string) (position int64, version uint64) {
	l.wonder()
	position = l.Head()
	l.progress.mu.Lock()
	defer l.progress.mu.Unlock()
	for _, n := range names {
		s := l.progress.of(n)
		s.asked = true
		position = min(position, s.position)
		version += s.version
	}
	return position, version
}

const (
	watchElsewhere = 100 * time.Millisecond
	watchHere      = time.Second // somebody else may have put other tables in place
)

// watcher reads the checkpoints of what is watched: what other processes tell may be lost.
func (l *Log) watcher(ctx context.Context) {
	for ctx.Err() == nil {
		names, elsewhere := l.progress.watched()
		if len(names) > 0 {
			if err := l.watch(ctx, names); err != nil && ctx.Err() == nil {
				l.logger.Warn("checkpoints were not read; trying again", "error", err)
				l.progress.forget()
			}
		}
		wait := watchHere
		if elsewhere || len(names) == 0 {
			wait = watchElsewhere
		}
		pause.For(ctx, wait)
	}
}

func (l *Log) watch(ctx context.Context, names []string) error {
	ctx, cancel := context.WithTimeout(ctx, watchHere)
	defer cancel()
	_, err := l.checkpoints(ctx, names)
	return err
}

// checkpoints reads where followers stand, as stored.
func (l *Log) checkpoints(ctx context.Context, names []string) (map[string]int64, error) {
	rows, err := l.pool.Query(ctx, `select name, position, epoch from followers where name = any($1)`, names)
	if err != nil {
		return nil, fmt.Errorf("read checkpoints: %w", err)
	}
	at := map[string]int64{}
	var name string
	var position, epoch int64
	_, err = pgx.ForEachRow(rows, []any{&name, &position, &epoch}, func() error {
		at[name] = position
		l.progress.saw(name, position, epoch)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read checkpoints: %w", err)
	}
	return at, nil
}

// checkpointPoll is how often the checkpoints of followers that are not watched are looked at.
const checkpointPoll = 20 * time.Millisecond

// WaitFor returns when each named follower, whichever process runs it, has covered position, or with ctx's error.
func (l *Log) WaitFor(ctx context.Context, position int64, names ...string) error {
	l.wonder()
	l.progress.want(min(position, l.Head()))
	told := false
	for {
		moved, elsewhere, unknown := l.progress.behind(position, names)
		if len(unknown) > 0 {
			at, err := l.checkpoints(ctx, unknown)
			if err != nil {
				return err
			}
			unknown = slices.DeleteFunc(unknown, func(n string) bool {
				reached, ok := at[n]
				return ok && reached >= position
			})
		}
		if moved == nil && len(unknown) == 0 {
			return nil
		}
		if elsewhere && !told { // that somebody waits
			l.tell()
			told = true
		}
		var poll <-chan time.Time
		if len(unknown) > 0 {
			poll = time.After(checkpointPoll)
		}
		select {
		case <-moved:
		case <-poll:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
