package readapi

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/singleflight"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
	"github.com/wheelrefinery/refinery/projections"
)

// Options is what the wiring hands in. All but URL must be set.
type Options struct {
	Pool *pgxpool.Pool // made by Pool: its connections cannot write
	// Outcomes finds what became of a command; false: nothing yet.
	Outcomes func(ctx context.Context, id uuid.UUID) (eventlog.Outcome, bool, error)
	// Wait returns once the named read models, all where none is named, cover position, or with ctx's error.
	Wait func(ctx context.Context, position int64, models ...string) error
	// Covered is the last position that the named read models, all where none is named, are known to cover, never more, and a version
	// that changes whenever their tables may have changed. It is asked at every read and must be cheap.
	Covered func(models ...string) (position int64, version uint64)
	// Status says how each read model stands.
	Status func(ctx context.Context) ([]projections.Status, error)
	// Log is the log's end, as it grows.
	Log interface {
		Head() int64
		Changed() <-chan struct{}
		Recent(position int64, n int) []events.Recorded
	}
	Logger *slog.Logger
	// Ready says how each part stands.
	Ready  func(ctx context.Context) []api.Part
	Config func(ctx context.Context) (api.Config, error) // without credentials
	URL    string                                        // of the API, the base of links; empty: links are paths
}

// Server implements the operations of the contract that are tagged read.
type Server struct {
	o       Options
	feed    *feed
	db      prepared
	answers answers
	flights singleflight.Group
	slots   sync.Map // of each kind of read: chan struct{}
	atOnce  int      // reads of one kind that use the database
}

// New makes a Server.
func New(o Options) *Server {
	o.URL = strings.TrimSuffix(o.URL, "/")
	return &Server{o: o, feed: newFeed(o), db: prepared{o.Pool}, atOnce: max(1, int(o.Pool.Config().MaxConns)/8)}
}

const (
	statementTime = 10 * time.Second
	lockTime      = 2 * time.Second // for a table that somebody changes
)

// Pool connects to dsn with at most this many connections, on which every transaction is read-only, no statement takes longer than ten
// seconds, and none waits longer than two for a lock.
func Pool(ctx context.Context, dsn string, most int) (*pgxpool.Pool, error) {
	return eventlog.Pool(ctx, dsn, most, func(c *pgxpool.Config) {
		// Planning costs more than reading a page. Every list is read by an index in its order, so one plan serves whatever is asked for, and
		// one that was made while the tables were empty is no other.
		c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheStatement
		c.ConnConfig.StatementCacheCapacity = 100
		maps.Copy(c.ConnConfig.RuntimeParams, map[string]string{
			"default_transaction_read_only": "on", "application_name": "refinery-read",
			"statement_timeout": strconv.FormatInt(statementTime.Milliseconds(), 10),
			"lock_timeout":      strconv.FormatInt(lockTime.Milliseconds(), 10),
		})
	})
}

// waitMost is how long min_position waits.
const waitMost = 5 * time.Second

// read is what the parameters of reads have in common.
type read struct {
	min    *api.MinPosition
	match  *api.IfNoneMatch
	params any      // all of them, which with the path and the read models make the answer
	models []string // the read models that the answer is made of: it is kept. None: all, or others; it is made for each request
	aged   bool     // the answer holds ages
}

// answer waits where it is asked to, and calls body unless the answer is kept or the client has it. The body is sent as JSON; a page also
// says where the next one is.
func (s *Server) answer(ctx context.Context, r read, body func() (any, error)) (api.Answer, error) {
	if r.min != nil {
		if err := s.wait(ctx, *r.min, r.models); err != nil {
			return api.Answer{}, err
		}
	}
	position, version := s.o.Covered(r.models...) // before the rows: these may be newer, never older
	if r.min != nil {
		position = max(position, *r.min)
	}
	h := http.Header{"Refinery-Position": {strconv.FormatInt(position, 10)}, "Cache-Control": {"no-cache"}}
	key := api.RequestFrom(ctx).Path + "?" + query(r.params).Encode()
	var k *kept
	var err error
	if len(r.models) > 0 {
		k, err = s.keep(ctx, r, key, version, body)
	} else {
		tag := ""
		if !r.aged {
			if tag = etag(key, strconv.AppendInt(nil, position, 10)); has(r.match, tag) {
				h.Set("ETag", tag)
				return api.Answer{Status: http.StatusNotModified, Header: h}, nil
			}
		}
		if k, err = s.make(ctx, r, key, body); err == nil && tag != "" {
			k.etag = tag
		}
	}
	if err != nil {
		return api.Answer{}, err
	}
	h.Set("ETag", k.etag)
	if has(r.match, k.etag) || r.match != nil && strings.TrimSpace(*r.match) == "*" { // anything that is there
		return api.Answer{Status: http.StatusNotModified, Header: h}, nil
	}
	return k.answer(ctx, h), nil
}

// link says where the next page is; empty on the last.
func (s *Server) link(ctx context.Context, r read, p page) string {
	if p.next == nil {
		return ""
	}
	return fmt.Sprintf(`<%s%s?%s>; rel="next"`, s.o.URL, api.RequestFrom(ctx).Path, nextQuery(r.params, *p.next).Encode())
}

func (s *Server) wait(ctx context.Context, position int64, models []string) error {
	waiting, cancel := context.WithTimeout(ctx, waitMost)
	defer cancel()
	err := s.o.Wait(waiting, position, models...)
	if ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	at, _ := s.o.Covered(models...)
	return fault.New(fault.Timeout, "The read models stand at position %d, %d before min_position. Try again later.", at, max(0, position-at))
}

// etag names an answer by what was asked and the state: its body, or the position where it is not looked at. It is weak: a compressed body
// has the same.
func etag(key string, state []byte) string {
	h := sha256.New()
	_, _ = io.WriteString(h, key+"\n") // never fails
	_, _ = h.Write(state)
	return fmt.Sprintf(`W/"%x"`, h.Sum(nil)[:16])
}

func has(match *api.IfNoneMatch, tag string) bool { return match != nil && matches(*match, tag) }

// matches compares as If-None-Match does (RFC 9110, 13.1.2): weakly.
func matches(header, tag string) bool {
	for t := range strings.SplitSeq(header, ",") {
		if strings.TrimPrefix(strings.TrimSpace(t), "W/") == strings.TrimPrefix(tag, "W/") {
			return true
		}
	}
	return false
}

// invalid says what is wrong with a parameter of the query.
func invalid(parameter, detail string) error { return wrong("query:"+parameter, detail) }

func wrong(pointer, detail string) error {
	var k fault.Checks
	k.Check(false, pointer, "%s", detail)
	return k.Err()
}
