package projections

import (
	"fmt"
	"slices"

	"github.com/wheelrefinery/refinery/events"
)

// LogChunk is a part of an attempt's log.
type LogChunk struct {
	Stream    string `db:"stream" sql:"text primary key"` // log/<build>/<attempt>
	Chunk     int    `db:"chunk" sql:"bigint primary key"`
	FirstLine int    `db:"first_line" sql:"bigint"`
	Lines     int    `db:"lines" sql:"bigint"`
	Text      string `db:"text" sql:"text"`
}

// LogRow is an attempt's log.
type LogRow struct {
	Stream string `db:"stream" sql:"text primary key"`
	Build  string `db:"build" sql:"text"` // the build's stream
	Target
	Attempt int   `db:"attempt" sql:"bigint"`
	Lines   int   `db:"lines" sql:"bigint"`
	Bytes   int64 `db:"bytes" sql:"bigint"`
	Chunks  int   `db:"chunks" sql:"bigint"`
}

// Key is the log's stream.
func (r LogRow) Key() string { return r.Stream }

// LogEnd says that an attempt has ended, and its log with it.
type LogEnd struct {
	Stream   string `db:"stream" sql:"text primary key"`
	Position int64  `db:"position" sql:"bigint"`
}

// Key is the log's stream.
func (e LogEnd) Key() string { return e.Stream }

type logTables struct {
	chunks *journal[LogChunk]
	logs   *table[string, LogRow]
	ends   *table[string, LogEnd]
}

var logs = define("logs", 1, func(m *models) *logTables {
	return &logTables{
		newJournal[LogChunk](m, "chunks", "(stream, first_line)"),
		newTable[string, LogRow](m, "logs", "(build, attempt)"),
		newTable[string, LogEnd](m, "ends"),
	}
}, slices.Concat(
	[]subscription[logTables]{on((*logTables).appended)},
	onEach((*logTables).ended, events.BuildReleased{}, events.BuildSucceeded{}, events.BuildFailed{}, events.BuildCancelled{}),
)...)

func (t *logTables) appended(e events.LogAppended, m events.Recorded) {
	l, ok := t.logs.GetOwn(m.Stream, m)
	if !ok {
		id, attempt, ok := events.ParseLog(m.Stream)
		if !ok {
			panic(fmt.Sprintf("%q is not the stream of a log", m.Stream))
		}
		l = LogRow{Stream: m.Stream, Build: id.Stream(), Target: Target(id), Attempt: attempt}
	}
	l.Chunks, l.Lines, l.Bytes = l.Chunks+1, l.Lines+e.Lines, l.Bytes+int64(len(e.Text))
	t.logs.Put(l)
	t.chunks.Insert(LogChunk{m.Stream, e.Chunk, e.FirstLine, e.Lines, e.Text})
}

func (t *logTables) ended(m events.Recorded) {
	var attempt int
	switch e := m.Event.(type) {
	case events.BuildReleased:
		attempt = e.Attempt
	case events.BuildSucceeded:
		attempt = e.Attempt
	case events.BuildFailed:
		attempt = e.Attempt
	case events.BuildCancelled:
		attempt = e.Attempt
	}
	if attempt > 0 {
		t.ends.Put(LogEnd{targetOf(m).Build().Log(attempt), m.Position})
	}
}
