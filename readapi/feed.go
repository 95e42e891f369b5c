package readapi

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
	"github.com/wheelrefinery/refinery/internal/pause"
)

const (
	mostFollowers = 1000
	ringFrames    = 8192
	ringBytes     = 8 << 20
	partFrames    = 256 // that a follower takes at once
	partBytes     = 256 << 10
	pageFrames    = 128 // of the log, for those who are behind
	pageBytes     = 1 << 20
	pagesKept     = 8
	pageReaders   = 2    // at once, so that who replays leaves connections to others
	windowEvents  = 8192 // that one query with a filter looks at
	paceEach      = 400 * time.Microsecond
	paceMost      = 250 * time.Millisecond
	feedRetry     = time.Second
)

// event is an event as it is answered.
type event struct {
	Position    int64           `json:"position"`
	Stream      string          `json:"stream"`
	Type        string          `json:"type"`
	Version     int64           `json:"version"`
	Time        time.Time       `json:"time"`
	Actor       string          `json:"actor"`
	Command     uuid.UUID       `json:"command"`
	Correlation *uuid.UUID      `json:"correlation,omitempty"`
	Causation   *int64          `json:"causation,omitempty"`
	Data        json.RawMessage `json:"data"`
}

// frame is an event as followers get it, encoded once for all of them.
type frame struct {
	position     int64
	stream, kind string
	text         []byte
}

func newFrame(e event) (frame, error) {
	data, err := json.Marshal(e)
	if err != nil {
		return frame{}, fmt.Errorf("encode the event at %d: %w", e.Position, err)
	}
	return frame{e.Position, e.Stream, e.Type, fmt.Appendf(nil, "id: %d\nevent: %s\ndata: %s\n\n", e.Position, e.Type, data)}, nil
}

// feed hands the events that come to any number of followers. Each reads the ring by position, at its own speed, so none slows down
// another or the log; who is behind the ring reads pages of the log. The ring is filled while somebody follows.
type feed struct {
	o       Options
	reading chan struct{} // one for each that reads pages

	mu        sync.Mutex
	followers int
	stop      context.CancelFunc // ends the filling
	ring      []frame            // consecutive positions, ending at last
	bytes     int
	last      int64
	wake      chan struct{} // closed when last moves
	pages     map[int64][]frame
	order     []int64 // keys of pages, oldest first
}

func newFeed(o Options) *feed {
	return &feed{o: o, reading: make(chan struct{}, pageReaders), wake: make(chan struct{}), pages: map[int64][]frame{}}
}

// join begins to follow. Leave must be called once for each join without an error.
func (f *feed) join() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.followers == mostFollowers {
		return fault.New(fault.Unavailable, "%d followers are there, which is the most here. Try again later.", mostFollowers)
	}
	if f.followers++; f.followers == 1 {
		ctx, cancel := context.WithCancel(context.Background())
		f.stop, f.ring, f.bytes, f.last = cancel, nil, 0, f.o.Log.Head()
		go f.fill(ctx, f.last)
	}
	return nil
}

func (f *feed) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.followers--; f.followers == 0 {
		f.stop()
		f.ring = nil
		clear(f.pages)
		f.order = nil
	}
}

// fill brings what is appended into the ring. Between two rounds it lets events gather, the longer the more followers there are: waking
// them costs much more than an event.
func (f *feed) fill(ctx context.Context, at int64) {
	for ctx.Err() == nil {
		changed := f.o.Log.Changed()
		frames, err := f.newer(ctx, at)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			f.o.Logger.Error("followers of events wait: reading the log failed", "error", err)
			pause.For(ctx, feedRetry)
		case len(frames) > 0:
			at = frames[len(frames)-1].position
			pause.For(ctx, f.push(ctx, frames))
		default:
			select {
			case <-changed:
			case <-ctx.Done():
			}
		}
	}
}

// newer is what comes directly after at, from memory or, when others have appended, from the log.
func (f *feed) newer(ctx context.Context, at int64) ([]frame, error) {
	recent := f.o.Log.Recent(at, partFrames)
	if len(recent) == 0 && f.o.Log.Head() > at {
		return f.page(ctx, at)
	}
	frames := make([]frame, len(recent))
	for i, r := range recent {
		data, err := events.Encode(r.Event)
		if err != nil {
			return nil, err
		}
		frames[i], err = newFrame(event{
			Position: r.Position, Stream: r.Stream, Type: r.Event.Name(), Version: r.Version, Time: r.Time, Actor: r.Actor, Command: r.Command, Data: data,
		})
		if err != nil {
			return nil, err
		}
	}
	return frames, nil
}

// push adds frames to the ring, wakes the followers and says how long to let the next ones gather.
func (f *feed) push(ctx context.Context, frames []frame) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ctx.Err() != nil { // another fills the ring now
		return 0
	}
	f.ring = append(f.ring, frames...)
	for _, fr := range frames {
		f.bytes += len(fr.text)
	}
	for len(f.ring) > ringFrames || f.bytes > ringBytes && len(f.ring) > 1 {
		f.bytes -= len(f.ring[0].text)
		f.ring[0] = frame{}
		f.ring = f.ring[1:]
	}
	f.last = frames[len(frames)-1].position
	close(f.wake)
	f.wake = make(chan struct{})
	return min(time.Duration(f.followers)*paceEach, paceMost)
}

// position is the end of the ring.
func (f *feed) position() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last
}

// after is a part of the ring directly behind at. Without one, behind says that it has to be read from the log; otherwise wake is closed
// when there is more.
func (f *feed) after(at int64) (part []frame, behind bool, wake <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if at >= f.last {
		return nil, false, f.wake
	}
	if len(f.ring) == 0 || at+1 < f.ring[0].position {
		return nil, true, nil
	}
	from := int(at + 1 - f.ring[0].position)
	to, bytes := from, 0
	for to < len(f.ring) && to-from < partFrames && bytes < partBytes {
		bytes += len(f.ring[to].text)
		to++
	}
	return append(make([]frame, 0, to-from), f.ring[from:to]...), false, nil // the ring clears what it drops
}

// only says which events a follower wants. The zero value is all.
type only struct {
	stream string // exact, or with a slash at the end what it begins with
	kinds  []string
}

func (o only) where() (w where) {
	if o.stream != "" {
		w.stream(o.stream)
	}
	if len(o.kinds) > 0 {
		w.and("type = any(%s::text[])", o.kinds)
	}
	return w
}

// replay reads events behind at, and up to which position these are all; at must be before the end of the ring.
func (f *feed) replay(ctx context.Context, at int64, o only) (frames []frame, to int64, err error) {
	select {
	case f.reading <- struct{}{}:
		defer func() { <-f.reading }()
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	}
	if w := o.where(); len(w.conditions) > 0 {
		to = min(at+windowEvents, f.position())
		w.and("position > %s", at)
		w.and("position <= %s", to)
		var all bool
		frames, all, err = f.read(ctx, w, pageFrames)
		if err == nil && !all {
			to = frames[len(frames)-1].position
		}
		return frames, to, err
	}
	if frames, err = f.page(ctx, at); err == nil {
		to = frames[len(frames)-1].position
	}
	return frames, to, err
}

// page is the page of the log behind at, which must not be its end. Pages end at multiples of their size, so that who starts elsewhere
// falls in with the others; the last ones are kept.
func (f *feed) page(ctx context.Context, at int64) ([]frame, error) {
	f.mu.Lock()
	frames, ok := f.pages[at]
	f.mu.Unlock()
	if ok {
		return frames, nil
	}
	n := pageFrames - at%pageFrames
	var w where
	w.and("position > %s", at)
	w.and("position <= %s", at+n)
	frames, all, err := f.read(ctx, w, int(n))
	if err != nil {
		return nil, err
	}
	for i, fr := range frames {
		if fr.position != at+1+int64(i) {
			return nil, fmt.Errorf("the event log has a hole: %d follows %d", fr.position, at+int64(i))
		}
	}
	if len(frames) == 0 {
		return nil, fmt.Errorf("the event log ends at %d, and should not yet", at)
	}
	if !all {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.pages[at] == nil {
			f.order = append(f.order, at)
		}
		f.pages[at] = frames
		if len(f.order) > pagesKept {
			delete(f.pages, f.order[0])
			f.order = f.order[1:]
		}
	}
	return frames, nil
}

const eventColumns = "position, stream, type, version, recorded_at, actor, command, correlation, causation, data::text"

func scanEvent(rows pgx.CollectableRow) (e event, err error) {
	e.Correlation, e.Causation = new(uuid.UUID), new(int64)
	err = rows.Scan(&e.Position, &e.Stream, &e.Type, &e.Version, &e.Time, &e.Actor, &e.Command, e.Correlation, e.Causation, (*[]byte)(&e.Data))
	e.Time = e.Time.UTC()
	return e, err
}

// read reads at most n events in order, fewer when they are large; all says that there were no more.
func (f *feed) read(ctx context.Context, w where, n int) (frames []frame, all bool, err error) {
	rows, err := f.o.Pool.Query(ctx, fmt.Sprintf("select %s from events%s order by position limit %d", eventColumns, w.String(), n), w.args...)
	if err != nil {
		return nil, false, fmt.Errorf("read events: %w", err)
	}
	defer rows.Close()
	bytes := 0
	for bytes < pageBytes && rows.Next() {
		e, err := scanEvent(rows)
		if err != nil {
			return nil, false, fmt.Errorf("read events: %w", err)
		}
		e.Correlation, e.Causation = nil, nil
		fr, err := newFrame(e)
		if err != nil {
			return nil, false, err
		}
		frames = append(frames, fr)
		bytes += len(fr.text)
	}
	full := bytes >= pageBytes
	if err := rows.Err(); err != nil {
		return nil, false, fmt.Errorf("read events: %w", err)
	}
	return frames, !full && len(frames) < n, nil
}
