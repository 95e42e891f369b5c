package readapi

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/wheelrefinery/refinery/api"
)

const (
	auditEvents = 20_000 // that one page looks at where no index leads to what is asked for
	auditBytes  = 4 << 20
	auditRows   = 100 // that are read at once: some hold much text
)

var auditCursor = list[struct{}]{name: "audit", by: make([]string, 1)}

// eventList is a page of the log.
type eventList struct {
	Items []event `json:"items"`
	Next  *string `json:"next"`
}

// ListAudit answers GET /audit.
func (s *Server) ListAudit(ctx context.Context, request api.ListAuditRequestObject) (api.ListAuditResponseObject, error) {
	p := request.Params
	return s.answer(ctx, read{min: p.MinPosition, match: p.IfNoneMatch, params: p}, func() (any, error) {
		if p.From != nil && p.To != nil && p.To.Before(*p.From) {
			return nil, invalid("to", "must not be before from")
		}
		a, err := s.audit(ctx, p)
		if err != nil {
			return nil, err
		}
		items, next, err := a.read(ctx, p.Limit)
		return page{eventList{items, next}, next}, err
	})
}

// audit is a walk over numbers without gaps: positions, or, in one stream, versions.
type audit struct {
	s      *Server
	by     string
	filter where
	low    int64 // the walk is over low < number <= high
	high   int64
	oldest bool // first
	sparse bool // the filter may leave out many
}

func (s *Server) audit(ctx context.Context, p api.ListAuditParams) (*audit, error) {
	a := &audit{s: s, by: "position", low: value(p.After), oldest: p.Order != nil && *p.Order == api.Oldest}
	if err := s.o.Pool.QueryRow(ctx, "select position from head").Scan(&a.high); err != nil {
		return nil, fmt.Errorf("read the head of the log: %w", err)
	}
	head := a.high
	if p.From != nil {
		before, err := s.before(ctx, head, *p.From)
		if err != nil {
			return nil, err
		}
		a.low = max(a.low, before)
	}
	if p.To != nil {
		before, err := s.before(ctx, head, *p.To)
		if err != nil {
			return nil, err
		}
		a.high = min(a.high, before)
	}
	if p.Command != nil {
		var first, last int64
		err := s.o.Pool.QueryRow(ctx, "select first_position, last_position from commands where id = $1", *p.Command).Scan(&first, &last)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return nil, fmt.Errorf("read the command: %w", err)
		}
		a.low, a.high = max(a.low, first-1), min(a.high, last)
		a.filter.and("command = %s", *p.Command)
	}
	if p.Stream != nil {
		a.filter.stream(*p.Stream)
		a.sparse = true
	}
	if p.Type != nil && len(*p.Type) > 0 {
		a.filter.and("type = any(%s::text[])", *p.Type)
		a.sparse = true
	}
	if p.Actor != nil {
		a.filter.and("actor = %s", *p.Actor)
		a.sparse = true
	}
	if p.Stream != nil && (*p.Stream)[len(*p.Stream)-1] != '/' {
		if err := a.inStream(ctx, *p.Stream); err != nil {
			return nil, err
		}
	}
	if p.Cursor != nil {
		at, err := auditCursor.decode(*p.Cursor)
		if err != nil {
			return nil, err
		}
		if a.oldest {
			a.low = max(a.low, at[0])
		} else {
			a.high = min(a.high, at[0])
		}
	}
	return a, nil
}

// inStream walks the versions of one stream, which an index holds in order.
func (a *audit) inStream(ctx context.Context, stream string) error {
	var first, last, version int64
	err := a.s.o.Pool.QueryRow(ctx, "select first_position, last_position, version from streams where stream = $1", stream).Scan(&first, &last, &version)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("read the stream: %w", err)
	}
	a.filter.and("position > %s", max(a.low, first-1)) // which leaves out partitions
	a.filter.and("position <= %s", min(a.high, last))
	a.by, a.low, a.high = "version", 0, version
	return nil
}

// before is the last position that was recorded before a time. Times are in the order of positions, so halving finds it.
func (s *Server) before(ctx context.Context, head int64, at time.Time) (position int64, err error) {
	err = s.o.Pool.QueryRow(ctx, `
		with recursive halves(low, high) as (
			select 0::bigint, $1::bigint
			union all
			select case when below then middle else low end, case when below then high else middle - 1 end
			from halves cross join lateral (select (low + high + 1) / 2 as middle) m
				cross join lateral (select recorded_at < $2 as below from events where position = middle offset 0) e
			where low < high
		) select low from halves where low >= high`, head, at).Scan(&position)
	if err != nil {
		return 0, fmt.Errorf("find the position of a time: %w", err)
	}
	return position, nil
}

// read walks until it has a page, or has looked at as much as one page may.
func (a *audit) read(ctx context.Context, limit *api.Limit) (items []event, next *string, err error) {
	n := defaultLimit
	if limit != nil {
		n = *limit
	}
	low, high := a.low, a.high // what this page still has to look at
	if a.sparse && a.oldest && low < high {
		high = min(high, low+auditEvents)
	} else if a.sparse {
		low = max(low, high-auditEvents)
	}
	items = []event{}
	for bytes := 0; low < high && len(items) < n && bytes < auditBytes; {
		want := min(auditRows, n-len(items))
		rows, err := a.rows(ctx, low, high, want)
		if err != nil {
			return nil, nil, err
		}
		for _, e := range rows {
			if bytes >= auditBytes {
				break
			}
			items, bytes = append(items, e), bytes+len(e.Data)
			number := e.Position
			if a.by == "version" {
				number = e.Version
			}
			if a.oldest {
				low = number
			} else {
				high = number - 1
			}
		}
		switch {
		case len(rows) == want || bytes >= auditBytes:
		case a.oldest:
			low = high
		default:
			high = low
		}
	}
	at, more := high, high > a.low
	if a.oldest {
		at, more = low, low < a.high
	}
	if more {
		c := auditCursor.encode([]int64{at})
		next = &c
	}
	return items, next, nil
}

func (a *audit) rows(ctx context.Context, low, high int64, n int) ([]event, error) {
	w, direction := a.filter.clone(), " desc"
	w.and(a.by+" > %s", low)
	w.and(a.by+" <= %s", high)
	if a.oldest {
		direction = ""
	}
	rows, err := a.s.o.Pool.Query(ctx, fmt.Sprintf("select %s from events%s order by %s%s limit %d", eventColumns, w.String(), a.by, direction, n), w.args...)
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	events, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (event, error) { return scanEvent(r) })
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	return events, nil
}
