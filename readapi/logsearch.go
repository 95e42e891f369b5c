package readapi

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/projections"
)

const (
	searchTime   = time.Second           // after which a search answers with what it has
	widenBelow   = 50 * time.Millisecond // for a query to look at twice as many segments next time
	mostSegments = 32
	lineBytes    = 2000 // of a line that are answered
	lineBefore   = 200  // of them before the text
	aroundAtOnce = 32   // hits whose surroundings are read in one round trip
)

// searchAt is where a search goes on: in a segment, behind a line of the event at a position.
type searchAt struct{ segment, position, line int64 }

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

// segments are the newest and the oldest that may hold lines of a time.
func (s *Server) segments(ctx context.Context, from, to *time.Time) (newest searchAt, oldest int64, err error) {
	newest = searchAt{position: math.MaxInt64, line: math.MaxInt64}
	err = s.o.Pool.QueryRow(ctx, `select
		coalesce((select segment from logs.pieces where time < coalesce($2::timestamptz, 'infinity') order by time desc limit 1), -1),
		coalesce((select segment from logs.pieces where time >= coalesce($1::timestamptz, '-infinity') order by time limit 1), 0)`,
		from, to).Scan(&newest.segment, &oldest)
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
		c := searchCursor.encode([]int64{at.segment, at.position, at.line})
		return &c
	}
	begin := time.Now()
	for width := int64(1); at.segment >= oldest; {
		last, asked := max(oldest, at.segment-width+1), time.Now()
		pieces, err := s.pieces(ctx, w, at, last, limit)
		if err != nil {
			return nil, nil, err
		}
		for _, p := range pieces {
			for _, h := range linesWith(p, lower) {
				if p.Position == at.position && h.line >= at.line {
					continue
				}
				if hits = append(hits, h); len(hits) == limit {
					return hits, cursor(searchAt{int64(p.Segment), p.Position, h.line}), nil
				}
			}
		}
		if len(pieces) == limit { // some hold only what looks like the text
			p := pieces[limit-1]
			at = searchAt{int64(p.Segment), p.Position, int64(p.FirstLine)}
		} else {
			at = searchAt{last - 1, math.MaxInt64, math.MaxInt64}
		}
		if time.Since(begin) > searchTime && at.segment >= oldest {
			return hits, cursor(at), nil
		}
		if time.Since(asked) < widenBelow {
			width = min(2*width, mostSegments)
		} else {
			width = max(1, width/2)
		}
	}
	return hits, nil, nil
}

// pieces are the first that match behind at, down to the segment last. Each segment is asked by itself, so that the index joins text and
// segment, and what is common does not have to be read everywhere.
func (s *Server) pieces(ctx context.Context, w where, at searchAt, last int64, limit int) ([]projections.LogPiece, error) {
	w = w.clone()
	w.and("(position, first_line) < (%s::bigint, ", at.position)
	w.args = append(w.args, at.line, at.segment, last)
	n := len(w.args)
	w.conditions[len(w.conditions)-1] += fmt.Sprintf("$%d::bigint)", n-2)
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
