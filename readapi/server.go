package readapi

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// Options is what the wiring hands in. All but URL must be set.
type Options struct {
	Pool *pgxpool.Pool // made by Pool: its connections cannot write
	// Outcomes finds what became of a command; false: nothing yet.
	Outcomes func(ctx context.Context, id uuid.UUID) (eventlog.Outcome, bool, error)
	// Wait returns once every read model covers position, or with ctx's error.
	Wait func(ctx context.Context, position int64) error
	// Position is the last position that every read model is known to cover, never more: clients keep what they have by it. It is asked
	// at every read and must be cheap.
	Position func() int64
	// Log is the log's end, as it grows.
	Log interface {
		Head() int64
		Changed() <-chan struct{}
		Recent(position int64, n int) []events.Recorded
	}
	Logger *slog.Logger
	// Ready says how each part stands.
	Ready  func(ctx context.Context) []api.Part
	Config func() api.Config // without credentials
	URL    string            // of the API, the base of links; empty: links are paths
}

// Server implements the operations of the contract that are tagged read.
type Server struct {
	o    Options
	feed *feed
}

// New makes a Server.
func New(o Options) *Server {
	o.URL = strings.TrimSuffix(o.URL, "/")
	return &Server{o, newFeed(o)}
}

const statementTime = 10 * time.Second

// Pool connects to dsn with at most this many connections, on which every transaction is read-only and no statement takes longer than
// ten seconds.
func Pool(ctx context.Context, dsn string, most int) (*pgxpool.Pool, error) {
	c, err := pgxpool.ParseConfig(dsn)
	if err != nil { // which may quote the password
		return nil, fault.New(fault.Invalid, "POSTGRES_DSN does not parse: see the form postgres://user:password@host:port/database")
	}
	c.MaxConns = int32(most)
	// A plan for each call: one that was made while the tables were empty would stay.
	c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	for name, value := range map[string]string{
		"default_transaction_read_only": "on", "jit": "off", "application_name": "refinery-read",
		"statement_timeout": strconv.FormatInt(statementTime.Milliseconds(), 10),
	} {
		c.ConnConfig.RuntimeParams[name] = value
	}
	pool, err := pgxpool.NewWithConfig(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("connect to Postgres: %w", err)
	}
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, fault.New(fault.Unavailable, "Postgres does not answer at %s:%d: start it, or correct POSTGRES_DSN: %w",
			c.ConnConfig.Host, c.ConnConfig.Port, err)
	}
	return pool, nil
}

// waitMost is how long min_position waits.
const waitMost = 5 * time.Second

// read is what the parameters of reads have in common.
type read struct {
	min    *api.MinPosition
	match  *api.IfNoneMatch
	params any  // all of them, for the ETag
	aged   bool // the answer holds ages: no ETag
}

// answer waits where it is asked to, and calls body unless the client has the answer already. The body is sent as JSON; a page also says
// where the next one is.
func (s *Server) answer(ctx context.Context, r read, body func() (any, error)) (api.Answer, error) {
	if r.min != nil {
		if err := s.wait(ctx, *r.min); err != nil {
			return api.Answer{}, err
		}
	}
	position := s.o.Position() // before the rows: these may be newer than the ETag says, never older
	if r.min != nil {
		position = max(position, *r.min)
	}
	h := http.Header{}
	h.Set("Refinery-Position", strconv.FormatInt(position, 10))
	h.Set("Cache-Control", "no-cache")
	if !r.aged {
		tag := etag(ctx, position, r.params)
		h.Set("ETag", tag)
		if r.match != nil && matches(*r.match, tag) {
			return api.Answer{Status: http.StatusNotModified, Header: h}, nil
		}
	}
	b, err := body()
	if err != nil {
		return api.Answer{}, trouble(ctx, err)
	}
	if !r.aged && r.match != nil && strings.TrimSpace(*r.match) == "*" { // anything that is there
		return api.Answer{Status: http.StatusNotModified, Header: h}, nil
	}
	if p, ok := b.(page); ok {
		if p.next != nil {
			h.Set("Link", fmt.Sprintf(`<%s%s?%s>; rel="next"`, s.o.URL, api.RequestFrom(ctx).Path, nextQuery(r.params, *p.next).Encode()))
		}
		b = p.body
	}
	return api.Answer{Status: http.StatusOK, Header: h, Body: b}, nil
}

func (s *Server) wait(ctx context.Context, position int64) error {
	waiting, cancel := context.WithTimeout(ctx, waitMost)
	defer cancel()
	err := s.o.Wait(waiting, position)
	if ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
		return trouble(ctx, err)
	}
	at := s.o.Position()
	return fault.New(fault.Timeout, "The read models stand at position %d, %d before min_position. Try again later.", at, max(0, position-at))
}

// etag names the state of the answer: the read models are a function of the position.
func etag(ctx context.Context, position int64, params any) string {
	h := fnv.New64a()
	_, _ = io.WriteString(h, api.RequestFrom(ctx).Path+"?"+query(params).Encode()) // never fails
	return fmt.Sprintf(`W/"%d-%x"`, position, h.Sum64())
}

// matches compares as If-None-Match does (RFC 9110, 13.1.2): weakly.
func matches(header, tag string) bool {
	for t := range strings.SplitSeq(header, ",") {
		if strings.TrimPrefix(strings.TrimSpace(t), "W/") == strings.TrimPrefix(tag, "W/") {
			return true
		}
	}
	return false
}

// trouble gives an error of the database the code that says whether trying again helps. The cause stays for the log.
func trouble(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) { // which is a net.Error too
		return err
	}
	_, connecting := errors.AsType[*pgconn.ConnectError](err)
	_, network := errors.AsType[net.Error](err)
	pg, answered := errors.AsType[*pgconn.PgError](err)
	switch {
	case answered && pg.Code == "57014":
		return errors.Join(fault.New(fault.Timeout, "The read took longer than %v. Ask for less: add a filter, or lower the limit.", statementTime), err)
	case connecting, network, errors.Is(err, io.ErrUnexpectedEOF),
		answered && (strings.HasPrefix(pg.Code, "57P") || strings.HasPrefix(pg.Code, "08") || pg.Code == "53300"):
		return errors.Join(fault.New(fault.Unavailable, "The database does not answer. Try again in a moment; /ready says how it stands."), err)
	}
	return err
}

// invalid says what is wrong with a parameter of the query.
func invalid(parameter, detail string) error { return wrong("query:"+parameter, detail) }

func wrong(pointer, detail string) error {
	var k fault.Checks
	k.Check(false, pointer, "%s", detail)
	return k.Err()
}
