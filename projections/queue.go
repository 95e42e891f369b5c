package projections

import (
	"context"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/events"
)

// QueueEntry is a place in the queue.
type QueueEntry struct {
	Stream      string    `db:"stream" sql:"text primary key"`
	PythonTag   string    `db:"python_tag" sql:"text"`
	PlatformTag string    `db:"platform_tag" sql:"text"`
	Priority    int       `db:"priority" sql:"bigint"`
	Position    int64     `db:"position" sql:"bigint"`
	NotBefore   time.Time `db:"not_before" sql:"timestamptz"` // zero: at once
}

// Key is the build's stream.
func (e QueueEntry) Key() string { return e.Stream }

// QueueRow is a build that was queued at least once, with all that a lease says of it.
type QueueRow struct {
	Stream string `db:"stream" sql:"text primary key"`
	Target
	Status      string          `db:"status" sql:"text"`
	Priority    int             `db:"priority" sql:"bigint"`
	Position    int64           `db:"position" sql:"bigint"` // of the event that queued it; kept when an attempt is handed back
	QueuedAt    time.Time       `db:"queued_at" sql:"timestamptz"`
	Attempts    int             `db:"attempts" sql:"bigint"`
	Run         uuid.UUID       `db:"run_id" sql:"uuid"`
	Sdist       *events.File    `db:"sdist" sql:"json"`
	Constraints []string        `db:"constraints" sql:"json"`
	Recipes     []events.Recipe `db:"recipes" sql:"json"`
	NotBefore   time.Time       `db:"not_before" sql:"timestamptz"` // zero: at once
	Class       string          `db:"class" sql:"text"`             // of its last failure
}

// Key is the build's stream.
func (r QueueRow) Key() string { return r.Stream }

// QueueState is the queue as a whole, in one row.
type QueueState struct {
	ID     int64      `db:"id" sql:"bigint primary key"`
	Paused bool       `db:"paused" sql:"boolean"`
	Reason string     `db:"reason" sql:"text"` // why it is paused
	Length int        `db:"length" sql:"bigint"`
	Leased int        `db:"leased" sql:"bigint"`
	Tags   []QueueTag `db:"tags" sql:"json"`
}

// Key is always 1.
func (s QueueState) Key() int64 { return s.ID }

// QueueTag counts the builds of one target.
type QueueTag struct {
	PythonTag   string `json:"python_tag"`
	PlatformTag string `json:"platform_tag"`
	Length      int    `json:"length"`
	Leased      int    `json:"leased"`
}

// QueueClear says how many builds the queue.cleared event at a position took out.
type QueueClear struct {
	Position int64 `db:"position" sql:"bigint primary key"`
	Cleared  int   `db:"cleared" sql:"bigint"`
}

type queueTables struct {
	entries *table[string, QueueEntry]
	builds  *table[string, QueueRow]
	state   *table[int64, QueueState]
	clears  *journal[QueueClear]
}

var queue = define("queue", 1, func(m *models) *queueTables {
	return &queueTables{
		newTable[string, QueueEntry](m, "entries", "((-priority), position)", "(python_tag, platform_tag, (-priority), position)",
			"(python_tag, platform_tag, not_before) where not_before is not null"),
		newTable[string, QueueRow](m, "builds", "(position) where status in ('queued', 'retrying', 'leased')"),
		newTable[int64, QueueState](m, "state"),
		newJournal[QueueClear](m, "clears"),
	}
}, slices.Concat(
	onEach((*queueTables).ended, events.BuildSucceeded{}, events.BuildFailed{}, events.BuildReused{}, events.BuildSkipped{}, events.BuildCancelled{}),
	[]subscription[queueTables]{
		on((*queueTables).planned),
		on((*queueTables).queued),
		on((*queueTables).leased),
		on((*queueTables).released),
		on((*queueTables).prioritised),
		on((*queueTables).cleared),
		on((*queueTables).paused),
		on((*queueTables).resumed),
	})...)

// planned only looks: so it is known without a query, when the build is queued, that it never was before.
func (t *queueTables) planned(_ events.BuildPlanned, m events.Recorded) {
	t.builds.GetOwn(m.Stream, m)
	t.entries.GetOwn(m.Stream, m)
}

func (t *queueTables) queued(e events.BuildQueued, m events.Recorded) {
	b, _ := t.builds.GetOwn(m.Stream, m)
	_, inQueue := t.entries.GetOwn(m.Stream, m)
	b.Stream, b.Target = m.Stream, targetOf(m)
	b.Priority, b.Status = e.Priority, after(b.Status, e)
	b.Run = e.Run
	if e.Sdist != nil {
		b.Sdist = e.Sdist
	}
	if len(e.Constraints) > 0 {
		b.Constraints = e.Constraints
	}
	if len(e.Recipes) > 0 {
		b.Recipes = e.Recipes
	}
	b.NotBefore = e.NotBefore
	if waiting(b.Status) {
		if !inQueue {
			b.Position, b.QueuedAt = m.Position, m.Time
		}
		t.enter(b, inQueue)
	}
	t.builds.Put(b)
}

func (t *queueTables) leased(e events.BuildLeased, m events.Recorded) {
	b := t.leave(m)
	b.Stream, b.Target = m.Stream, targetOf(m)
	b.Status, b.Attempts, b.NotBefore = after(b.Status, e), e.Attempt, time.Time{}
	t.count(b.Target, 0, 1)
	t.builds.Put(b)
}

func (t *queueTables) released(e events.BuildReleased, m events.Recorded) {
	b := t.leave(m)
	b.Stream, b.Target = m.Stream, targetOf(m)
	b.Status = after(b.Status, e)
	t.enter(b, false)
	t.builds.Put(b)
}

func (t *queueTables) prioritised(e events.BuildPriorityChanged, m events.Recorded) {
	b, ok := t.builds.GetOwn(m.Stream, m)
	if !ok {
		return
	}
	b.Priority = e.Priority
	t.builds.Put(b)
	if _, inQueue := t.entries.GetOwn(m.Stream, m); inQueue { // the queue may have been cleared of it
		t.enter(b, true)
	}
}

func (t *queueTables) ended(m events.Recorded) {
	b, ok := t.builds.GetOwn(m.Stream, m)
	if !ok {
		return
	}
	status := after(b.Status, m.Event.(events.BuildEvent))
	if waiting(status) || leased(status) {
		return // another run still wants it
	}
	t.leave(m)
	b.Status = status
	if e, ok := m.Event.(events.BuildFailed); ok {
		b.Class = string(e.Class)
	}
	t.builds.Put(b)
}

// enter puts b in the queue at its place.
func (t *queueTables) enter(b QueueRow, inQueue bool) {
	t.entries.Put(QueueEntry{b.Stream, b.PythonTag, b.PlatformTag, b.Priority, b.Position, b.NotBefore})
	if !inQueue {
		t.count(b.Target, 1, 0)
	}
}

// leave takes the build out of the queue, or out of the leased ones.
func (t *queueTables) leave(m events.Recorded) QueueRow {
	b, ok := t.builds.GetOwn(m.Stream, m)
	if !ok {
		return b
	}
	if _, inQueue := t.entries.Get(m.Stream); inQueue {
		t.entries.Delete(m.Stream)
		t.count(b.Target, -1, 0)
	}
	if leased(b.Status) {
		t.count(b.Target, 0, -1)
	}
	return b
}

func (t *queueTables) count(of Target, length, leased int) {
	s := t.getState()
	s.Length, s.Leased = s.Length+length, s.Leased+leased
	tags := slices.Clone(s.Tags)
	i := slices.IndexFunc(tags, func(q QueueTag) bool { return q.PythonTag == of.PythonTag && q.PlatformTag == of.PlatformTag })
	if i < 0 {
		i = len(tags)
		tags = append(tags, QueueTag{PythonTag: of.PythonTag, PlatformTag: of.PlatformTag})
	}
	tags[i].Length, tags[i].Leased = tags[i].Length+length, tags[i].Leased+leased
	s.Tags = tags
	t.state.Put(s)
}

func (t *queueTables) getState() QueueState {
	s, _ := t.state.Get(1)
	s.ID = 1
	return s
}

// cleared empties the queue; the builds' streams learn of it by being cancelled one by one.
func (t *queueTables) cleared(e events.QueueCleared, m events.Recorded) {
	s := t.getState()
	n := s.Length
	if e.IncludeLeased {
		n += s.Leased
	}
	t.clears.Insert(QueueClear{m.Position, n})
	t.entries.Clear()
	s.Length, s.Tags = 0, slices.Clone(s.Tags)
	for i := range s.Tags {
		s.Tags[i].Length = 0
	}
	t.state.Put(s)
}

func (t *queueTables) paused(e events.QueuePaused, _ events.Recorded) {
	s := t.getState()
	s.Paused, s.Reason = true, e.Reason
	t.state.Put(s)
}

func (t *queueTables) resumed(events.QueueResumed, events.Recorded) {
	s := t.getState()
	s.Paused, s.Reason = false, ""
	t.state.Put(s)
}

// Candidates reads the builds that a worker of these tags may lease now, the first to lease first, and the time when there may be more of
// them although nothing happens; zero: never. Whether the queue is paused is in Queue.
func Candidates(ctx context.Context, q Querier, pythonTag, platformTag string, now time.Time, limit int) ([]QueueRow, time.Time, error) {
	later, err := Query[QueueEntry](ctx, q, `from queue.entries where python_tag = $1 and platform_tag = $2 and not_before > $3
		order by not_before limit 1`, pythonTag, platformTag, now)
	if err != nil {
		return nil, time.Time{}, err
	}
	var more time.Time
	if len(later) > 0 {
		more = later[0].NotBefore
	}
	rows, err := Query[QueueRow](ctx, q, `from (select b.* from queue.entries e join queue.builds b on b.stream = e.stream
		where e.python_tag = $1 and e.platform_tag = $2 and (e.not_before is null or e.not_before <= $3)
		order by -e.priority, e.position limit $4) c order by -priority, position`, pythonTag, platformTag, now, limit)
	return rows, more, err
}

// Cleared waits for the queue and reads the builds that were queued, or leased, at position and have not ended since. The streams say which
// of them the queue.cleared event there took out.
func (r *Runner) Cleared(ctx context.Context, position int64) ([]events.BuildID, error) {
	if err := r.log.WaitFor(ctx, position, queue.name); err != nil {
		return nil, err
	}
	rows, err := Query[QueueRow](ctx, r.pool,
		`from queue.builds where position < $1 and status in ('queued', 'retrying', 'leased') order by position`, position)
	ids := make([]events.BuildID, len(rows))
	for i, b := range rows {
		ids[i] = b.Build()
	}
	return ids, err
}

// ClearCount reads how many builds the queue.cleared event at position took out; leased ones count if it was to take them too.
func ClearCount(ctx context.Context, q Querier, position int64) (int, error) {
	rows, err := Query[QueueClear](ctx, q, "from queue.clears where position = $1", position)
	if err != nil || len(rows) == 0 {
		return 0, err
	}
	return rows[0].Cleared, nil
}

// Queue reads the state of the queue.
func Queue(ctx context.Context, q Querier) (QueueState, error) {
	rows, err := Query[QueueState](ctx, q, "from queue.state")
	if err != nil || len(rows) == 0 {
		return QueueState{ID: 1, Tags: []QueueTag{}}, err
	}
	return rows[0], nil
}
