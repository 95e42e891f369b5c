// Package readapi answers the reads of the API from the read models, on connections that cannot write.
//
// Lists are read by keyset: a cursor is the sort key of the last item, so that a page costs the same wherever it is.
package readapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// Server implements the operations of the contract that are tagged read. All fields must be set.
type Server struct {
	DB *pgxpool.Pool // of Pool
	// Wait returns when the named projections cover position, or with ctx's error.
	Wait func(ctx context.Context, position int64, projections ...string) error
	// Parts says how each part that is needed stands, in the order in which they are shown.
	Parts func(ctx context.Context) []api.Part
	// Config is the configuration without credentials.
	Config func(ctx context.Context) (api.Config, error)
}

// Pool connects to dsn with at most this many connections, on which every transaction is read-only.
func Pool(ctx context.Context, dsn string, most int) (*pgxpool.Pool, error) {
	c, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, fault.New(fault.Invalid, "POSTGRES_DSN does not parse: see the form postgres://user:password@host:port/database")
	}
	c.MaxConns = int32(most)
	c.ConnConfig.RuntimeParams["default_transaction_read_only"] = "on"
	c.ConnConfig.RuntimeParams["jit"] = "off"
	c.ConnConfig.RuntimeParams["application_name"] = "refinery reads"
	pool, err := pgxpool.NewWithConfig(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("connect to Postgres: %w", err)
	}
	return pool, nil
}

// waitAtMost is how long min_position waits.
const waitAtMost = 5 * time.Second

// read is what the parameters of reads have in common.
type read struct {
	min    *api.MinPosition
	match  *api.IfNoneMatch
	models []string // the projections that the answer is made of
	clock  bool     // the answer also depends on the time: no ETag
}

// answer waits where it is asked to, and makes the body unless the client has it already. f's result is the body, or a full answer.
func (s *Server) answer(ctx context.Context, r read, f func() (any, error)) (api.Answer, error) {
	if r.min != nil {
		if err := s.wait(ctx, *r.min, r.models); err != nil {
			return api.Answer{}, err
		}
	}
	// Read before the rows: these may be newer than the ETag says, never older.
	position, tag, err := s.state(ctx, r.models)
	if err != nil {
		return api.Answer{}, err
	}
	if r.min != nil {
		position = max(position, *r.min) // a checkpoint that nothing was written for is stored late
	}
	h := http.Header{}
	h.Set("Refinery-Position", strconv.FormatInt(position, 10))
	h.Set("Cache-Control", "no-cache")
	if !r.clock {
		h.Set("ETag", tag)
		if r.match != nil && matches(*r.match, tag) {
			return api.Answer{Status: http.StatusNotModified, Header: h}, nil
		}
	}
	body, err := f()
	if err != nil {
		return api.Answer{}, err
	}
	if p, ok := body.(page); ok {
		if p.link != "" {
			h.Set("Link", p.link)
		}
		body = p.body
	}
	return api.Answer{Status: http.StatusOK, Header: h, Body: body}, nil
}

func (s *Server) wait(ctx context.Context, position int64, models []string) error {
	waiting, cancel := context.WithTimeout(ctx, waitAtMost)
	defer cancel()
	err := s.Wait(waiting, position, models...)
	if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
		return err
	}
	at, _, err := s.state(ctx, models)
	if err != nil {
		return err
	}
	return fault.New(fault.Timeout, "The read model stands at position %d, %d before the one asked for. Try again.", at, max(0, position-at))
}

// state is the position that all of models cover, and an ETag that changes with any of them.
func (s *Server) state(ctx context.Context, models []string) (position int64, tag string, err error) {
	err = s.DB.QueryRow(ctx, `
		select coalesce(min(coalesce(f.position, 0)), 0), coalesce(string_agg(p.generation || '.' || coalesce(f.position, 0), '-' order by p.name), '')
		from projections p left join followers f on f.name = p.name where p.name = any($1)`, models).Scan(&position, &tag)
	if err != nil {
		return 0, "", fmt.Errorf("read the position of %v: %w", models, err)
	}
	return position, `W/"` + tag + `"`, nil
}

// matches compares as If-None-Match does (RFC 9110, 13.1.2): weakly.
func matches(header, tag string) bool {
	for t := range strings.SplitSeq(header, ",") {
		t = strings.TrimSpace(t)
		if t == "*" || strings.TrimPrefix(t, "W/") == strings.TrimPrefix(tag, "W/") {
			return true
		}
	}
	return false
}
