package projections

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/wheelrefinery/refinery/events"
)

// LogPiece is a part of a chunk of an attempt's log: whole lines, and about pieceBytes of them.
type LogPiece struct {
	Stream    string    `db:"stream" sql:"text primary key"` // log/<build>/<attempt>
	Chunk     int       `db:"chunk" sql:"bigint primary key"`
	Piece     int       `db:"piece" sql:"bigint primary key"`
	FirstLine int       `db:"first_line" sql:"bigint"`
	Lines     int       `db:"lines" sql:"bigint"`
	Segment   int       `db:"segment" sql:"bigint"`
	Position  int64     `db:"position" sql:"bigint"`
	Time      time.Time `db:"time" sql:"timestamptz"`
	Text      string    `db:"text" sql:"text"`
	Target
	VersionKey string `db:"version_key" sql:"text"`
	Attempt    int    `db:"attempt" sql:"bigint"`
}

// What is searched at once: the index leads to pieces, and a search goes from segment to segment (0012).
const (
	pieceBytes   = 8 << 10
	segmentBytes = 16 << 20
)

// LogSegment is the segment that new text goes to. There is one row.
type LogSegment struct {
	Name   string `db:"name" sql:"text primary key"`
	Number int    `db:"number" sql:"bigint"`
	Bytes  int    `db:"bytes" sql:"bigint"`
}

// Key is the name.
func (r LogSegment) Key() string { return r.Name }

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
	pieces   *journal[LogPiece]
	logs     *table[string, LogRow]
	ends     *table[string, LogEnd]
	segments *table[string, LogSegment]
}

var logs = define("logs", 2, func(m *models) *logTables {
	return &logTables{
		newJournal[LogPiece](m, "pieces", "(stream, first_line)", "(time, segment, position)", "(position, first_line)", "(name, segment)",
			"using gin (segment, text gin_trgm_ops) with (gin_pending_list_limit = 1024)"),
		newTable[string, LogRow](m, "logs", "(build, attempt)"),
		newTable[string, LogEnd](m, "ends"),
		newTable[string, LogSegment](m, "segments"),
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
	into, _ := t.segments.Get("newest")
	into.Name = "newest"
	line := e.FirstLine
	for n, text := range pieces(e.Text) {
		lines := strings.Count(text, "\n")
		t.pieces.Insert(LogPiece{
			Stream: m.Stream, Chunk: e.Chunk, Piece: n, FirstLine: line, Lines: lines, Segment: into.Number, Position: m.Position, Time: m.Time,
			Text: text, Target: l.Target, VersionKey: VersionKey(l.Version), Attempt: l.Attempt,
		})
		line += lines
	}
	if into.Bytes += len(e.Text); into.Bytes >= segmentBytes {
		into.Number, into.Bytes = into.Number+1, 0
	}
	t.segments.Put(into)
}

// pieces cuts text behind line breaks. A line over the size is a piece of its own.
func pieces(text string) []string {
	var all []string
	for len(text) > pieceBytes {
		end := strings.LastIndexByte(text[:pieceBytes], '\n') + 1
		if end == 0 {
			if end = strings.IndexByte(text, '\n') + 1; end == 0 {
				break
			}
		}
		all, text = append(all, text[:end]), text[end:]
	}
	if text != "" {
		all = append(all, text)
	}
	return all
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
