package projections

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/wheelrefinery/refinery/events"
)

// HintRow is a hint as it stands, and of what use it was.
type HintRow struct {
	ID        string      `db:"id" sql:"text primary key"`
	Position  int64       `db:"position" sql:"bigint"` // of the event that made it
	Version   int64       `db:"version" sql:"bigint"`  // of its stream
	Hint      events.Hint `db:"hint" sql:"jsonb"`
	Severity  string      `db:"severity" sql:"text"`
	Tags      []string    `db:"tags" sql:"jsonb"`
	Search    string      `db:"search" sql:"text"` // what a text filter looks at, in lower case
	Twin      string      `db:"twin" sql:"text"`   // the same for hints that match the same
	Shipped   bool        `db:"shipped" sql:"boolean"`
	UpdatedAt time.Time   `db:"updated_at" sql:"timestamptz"`
	Matched   int         `db:"matched" sql:"bigint"` // failed attempts whose logs it matched
	Tried     int         `db:"tried" sql:"bigint"`   // of them, those after which its recipes were tried
	Helped    int         `db:"helped" sql:"bigint"`  // builds that then succeeded
}

// Key is the hint's id.
func (h HintRow) Key() string { return h.ID }

type hintTables struct{ hints *table[string, HintRow] }

var hints = define("hints", 1, func(m *models) *hintTables {
	return &hintTables{newTable[string, HintRow](m, "hints", "(position)", "(twin)", "using gin (tags)")}
}, on((*hintTables).saved), on((*hintTables).deleted), on((*hintTables).hinted), on((*hintTables).succeeded))

func (t *hintTables) saved(e events.HintSaved, m events.Recorded) {
	id := hintOf(m)
	h, ok := t.hints.GetOwn(id, m)
	if !ok {
		h = HintRow{ID: id, Position: m.Position}
	}
	h.Version, h.UpdatedAt, h.Shipped = m.Version, m.Time, e.Shipped
	h.Hint, h.Severity, h.Tags, h.Twin = e.Hint, e.Hint.Severity, list(e.Hint.Tags), e.Hint.Twin()
	h.Search = strings.ToLower(strings.Join([]string{id, e.Hint.Pattern, e.Hint.Note}, "\n"))
	t.hints.Put(h)
}

// deleted forgets the counts as well.
func (t *hintTables) deleted(_ events.HintDeleted, m events.Recorded) { t.hints.Delete(hintOf(m)) }

func (t *hintTables) hinted(e events.BuildHinted, _ events.Recorded) {
	for _, match := range e.Hints {
		if h, ok := t.hints.Get(match.Hint); ok {
			h.Matched++
			if e.Retry && len(match.Recipes) > 0 {
				h.Tried++
			}
			t.hints.Put(h)
		}
	}
}

func (t *hintTables) succeeded(e events.BuildSucceeded, _ events.Recorded) {
	for _, id := range e.Hints {
		if h, ok := t.hints.Get(id); ok {
			h.Helped++
			t.hints.Put(h)
		}
	}
}

func hintOf(m events.Recorded) string {
	id, ok := events.ParseHint(m.Stream)
	if !ok {
		panic(fmt.Sprintf("%q is not the stream of a hint", m.Stream))
	}
	return id
}

// hintIDs lists the hints that matched, each once.
func hintIDs(matches []events.HintMatch) []string {
	ids := make([]string, len(matches))
	for i, m := range matches {
		ids[i] = m.Hint
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// Hints waits for the catalogue as it is at position and reads all of it.
func (r *Runner) Hints(ctx context.Context, position int64) ([]events.Hint, error) {
	if err := r.log.WaitFor(ctx, position, hints.name); err != nil {
		return nil, err
	}
	rows, err := Query[HintRow](ctx, r.pool, "from hints.hints order by position")
	all := make([]events.Hint, len(rows))
	for i, h := range rows {
		all[i] = h.Hint
	}
	return all, err
}

// Twins reads which hints match the same as given ones: the ids by twin, in order.
func Twins(ctx context.Context, q Querier, twins []string) (map[string][]string, error) {
	rows, err := Query[HintRow](ctx, q, "from hints.hints where twin = any($1) order by position", twins)
	found := map[string][]string{}
	for _, h := range rows {
		found[h.Twin] = append(found[h.Twin], h.ID)
	}
	return found, err
}

// LogTail waits for an attempt's log as it is at position and reads its end: whole chunks of at most about most
// bytes. first is the number of the first line.
func (r *Runner) LogTail(ctx context.Context, stream string, position int64, most int) (text string, first int, err error) {
	if err := r.log.WaitFor(ctx, position, logs.name); err != nil {
		return "", 1, err
	}
	chunks, err := Query[LogChunk](ctx, r.pool, `from (select *, sum(octet_length(text)) over (order by chunk desc) as size
		from logs.chunks where stream = $1) c where size <= $2 order by chunk`, stream, most)
	if err != nil || len(chunks) == 0 {
		return "", 1, err
	}
	var b strings.Builder
	for _, c := range chunks {
		b.WriteString(c.Text)
	}
	return b.String(), chunks[0].FirstLine, nil
}
