package readapi

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/projections"
)

const (
	widenBelow   = 50 * time.Millisecond // for a query to look at twice as many segments next time
	mostSegments = 32
	newestPieces = 64   // that a search looks at before it asks the index
	lineBytes    = 2000 // of a line that are answered
	lineBefore   = 200  // of them before the text
	aroundAtOnce = 32   // hits whose surroundings are read in one round trip
)

var searchTime = time.Second // after which a search answers with what it has; a variable for the tests

// searchAt is where a search goes on: in a segment, behind a line of the event at a position, or at the segment's end (MaxInt64).
type searchAt struct {
	Segment  int64 `db:"segment"`
	Position int64 `db:"position"`
	Line     int64 `db:"first_line"`
}

var searchCursor = list[struct{}]{name: "search", by: make([]string, 3)}

// SearchLogs answers GET /logs/search.
func (s *Server) SearchLogs(ctx context.Context, request api.SearchLogsRequestObject) (api.SearchLogsResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, params: p}, func() (any, error) {
		if p.From != nil && p.To != nil && p.To.Before(*p.From) {
			return nil, invalid("to", "must not be before from")
		}
		var w where
		w.and("text ilike %s", pattern(p.Q))
		w.project("name", p.Package)
		w.version(p.Version)
		equal(&w, "python_tag", p.PythonTag)
		equal(&w, "platform_tag", p.PlatformTag)
		if p.From != nil {
			w.and("time >= %s", *p.From)
		}
		if p.To != nil {
			w.and("time < %s", *p.To)
		}
		at, oldest, err := s.segments(ctx, p.From, p.To)
		if err != nil {
			return nil, err
		}
		if p.Cursor != nil {
			keys, err := searchCursor.decode(*p.Cursor)
			if err != nil {
				return nil, err
			}
			at = searchAt{keys[0], keys[1], keys[2]}
		}
		limit := defaultLimit
		if p.Limit != nil {
			limit = *p.Limit
		}
		hits, next, err := s.search(ctx, strings.ToLower(p.Q), w, at, oldest, limit)
		if err != nil {
			return nil, err
		}
		lines, err := s.around(ctx, hits, int64(value(p.Context)))
		return page{api.LogLineList{Items: lines, Next: next}, next}, err
	})
}

// pattern is what a piece that holds q is like. The database folds the case of ASCII only: other letters stand for any character here,
// and lines are looked at once more.
func pattern(q string) string {
	var b strings.Builder
	b.WriteByte('%')
	for _, r := range q {
		switch {
		case r == '%' || r == '_' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r >= utf8.RuneSelf && (unicode.ToLower(r) != r || unicode.ToUpper(r) != r):
			b.WriteByte('_')
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('%')
	return b.String()
}

// segments are where lines of a time may be: the newest place, and the oldest segment, which is above the newest when there are none.
func (s *Server) segments(ctx context.Context, from, to *time.Time) (newest searchAt, oldest int64, err error) {
	newest.Line = math.MaxInt64
	order := "position desc"
	if to != nil {
		order = "time desc, segment desc, position desc"
	}
	err = s.o.Pool.QueryRow(ctx, `select segment, position, case when $1::timestamptz is null then 0
			else coalesce((select segment from logs.pieces where time >= $1 order by time limit 1), segment + 1) end
		from logs.pieces where time < coalesce($2::timestamptz, 'infinity') order by `+order+` limit 1`,
		from, to).Scan(&newest.Segment, &newest.Position, &oldest)
	if errors.Is(err, pgx.ErrNoRows) {
		return newest, newest.Segment + 1, nil
	}
	if err != nil {
		err = fmt.Errorf("find the segments of logs: %w", err)
	}
	return newest, oldest, err
}

// hit is a line that holds the text.
type hit struct {
	piece projections.LogPiece
	line  int64
	text  string
}

// search goes from segment to segment, the newest first, until it has enough or has looked for long enough.
func (s *Server) search(ctx context.Context, lower string, w where, at searchAt, oldest int64, limit int) (hits []hit, next *string, err error) {
	cursor := func(at searchAt) *string {
		c := searchCursor.encode([]int64{at.Segment, at.Position, at.Line})
		return &c
	}
	begin := time.Now()
	width := int64(0) // of the segments that are asked at once; 0: newest is
	if at.Position == math.MaxInt64 {
		width = 1
	}
	for at.Segment >= oldest {
		last, asked := max(oldest, at.Segment-width+1), time.Now()
		var pieces []projections.LogPiece
		var end searchAt
		if width == 0 {
			pieces, end, err = s.newest(ctx, w, at)
		} else {
			pieces, err = s.pieces(ctx, w, at, last, limit)
		}
		if err != nil {
			return nil, nil, err
		}
		for _, p := range pieces {
			for _, h := range linesWith(p, lower) {
				if p.Position == at.Position && h.line >= at.Line {
					continue
				}
				if hits = append(hits, h); len(hits) == limit {
					return hits, cursor(searchAt{int64(p.Segment), p.Position, h.line}), nil
				}
			}
		}
		if width == 0 {
			at = end
		} else if len(pieces) == limit { // some hold only what looks like the text
			p := pieces[limit-1]
			at = searchAt{int64(p.Segment), p.Position, int64(p.FirstLine)}
		} else {
			at = searchAt{last - 1, math.MaxInt64, math.MaxInt64}
		}
		if time.Since(begin) > searchTime && at.Segment >= oldest {
			return hits, cursor(at), nil
		}
		if time.Since(asked) < widenBelow {
			width = max(1, min(2*width, mostSegments))
		} else {
			width = max(1, width/2)
		}
	}
	return hits, nil, nil
}

// newest looks at the next pieces behind at without the index, since what is common is found there at once, and where they end.
func (s *Server) newest(ctx context.Context, w where, at searchAt) (pieces []projections.LogPiece, end searchAt, err error) {
	const order = " order by position desc, first_line desc"
	ends, err := projections.Query[searchAt](ctx, s.o.Pool, fmt.Sprintf("from logs.pieces where (position, first_line) < ($1, $2)%s offset %d limit 1", order, newestPieces-1),
		at.Position, at.Line)
	if err != nil {
		return nil, end, err
	}
	end.Segment = -1
	if len(ends) > 0 {
		end = ends[0]
	}
	w = w.clone()
	w.pair("<", at.Position, at.Line)
	w.pair(">=", end.Position, end.Line)
	pieces, err = projections.Query[projections.LogPiece](ctx, s.o.Pool, "from logs.pieces"+w.String()+order, w.args...)
	return pieces, end, err
}

// pair adds a condition on what pieces are sorted by.
func (w *where) pair(relation string, position, line int64) {
	w.args = append(w.args, position, line)
	w.conditions = append(w.conditions, fmt.Sprintf("(position, first_line) %s ($%d::bigint, $%d::bigint)", relation, len(w.args)-1, len(w.args)))
}

// pieces are the first that match behind at, down to the segment last. Each segment is asked by itself, so that the index joins text and
// segment, and what is common does not have to be read everywhere.
func (s *Server) pieces(ctx context.Context, w where, at searchAt, last int64, limit int) ([]projections.LogPiece, error) {
	w = w.clone()
	w.pair("<", at.Position, at.Line)
	w.args = append(w.args, at.Segment, last)
	n := len(w.args)
	columns := projections.Columns[projections.LogPiece]()
	order := fmt.Sprintf(" order by position desc, first_line desc limit %d", limit)
	return projections.Query[projections.LogPiece](ctx, s.o.Pool, fmt.Sprintf(
		`from generate_series($%d::bigint, $%d::bigint, -1) number cross join lateral (select %s from logs.pieces%s and segment = number%s) p%s`,
		n-1, n, columns, w.String(), order, order), w.args...)
}

// linesWith are the lines of a piece that hold the text, the last first.
func linesWith(p projections.LogPiece, lower string) (hits []hit) {
	line := int64(p.FirstLine)
	for text := range strings.SplitSeq(strings.TrimSuffix(p.Text, "\n"), "\n") {
		if i := strings.Index(strings.ToLower(text), lower); i >= 0 {
			hits = append(hits, hit{p, line, cut(text, i)})
		}
		line++
	}
	slices.Reverse(hits)
	return hits
}

// cut is a line, or what is around a place in it when it is long.
func cut(line string, at int) string {
	if len(line) <= lineBytes {
		return line
	}
	start := min(max(0, at-lineBefore), len(line)-lineBytes)
	end := start + lineBytes
	for start > 0 && !utf8.RuneStart(line[start]) {
		start++
	}
	for end < len(line) && !utf8.RuneStart(line[end]) {
		end--
	}
	s := line[start:end]
	if start > 0 {
		s = "…" + s
	}
	if end < len(line) {
		s += "…"
	}
	return s
}

// around answers hits with so many lines before and after each.
func (s *Server) around(ctx context.Context, hits []hit, n int64) ([]api.LogLine, error) {
	lines := make([]api.LogLine, 0, len(hits))
	for part := range slices.Chunk(hits, aroundAtOnce) {
		var all pipeline
		rows := make([][]projections.LogPiece, len(part))
		for i, h := range part {
			first, last := max(1, h.line-n), h.line+n
			if first < int64(h.piece.FirstLine) || last >= int64(h.piece.FirstLine+h.piece.Lines) {
				ask(&all, &rows[i], piecesOf+" order by first_line", h.piece.Stream, first, last)
			} else {
				rows[i] = []projections.LogPiece{h.piece}
			}
		}
		if len(all.reads) > 0 {
			if err := all.run(ctx, s.o.Pool); err != nil {
				return nil, err
			}
		}
		for i, h := range part {
			p := h.piece
			l := api.LogLine{
				Name: p.Name, Version: p.Version, PythonTag: p.PythonTag, PlatformTag: p.PlatformTag, Attempt: p.Attempt, Position: p.Position,
				Time: p.Time, Line: h.line, Text: h.text, Before: []string{}, After: []string{},
			}
			for _, p := range rows[i] {
				at := int64(p.FirstLine)
				for text := range strings.SplitSeq(strings.TrimSuffix(p.Text, "\n"), "\n") {
					switch {
					case at >= h.line-n && at < h.line:
						l.Before = append(l.Before, cut(text, 0))
					case at > h.line && at <= h.line+n:
						l.After = append(l.After, cut(text, 0))
					}
					at++
				}
			}
			lines = append(lines, l)
		}
	}
	return lines, nil
}

// value is what p points to, or the zero value.
func value[V any](p *V) V {
	if p == nil {
		return *new(V)
	}
	return *p
}
