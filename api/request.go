package api

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/internal/access"
)

// Request is what a handler of the strict server may want to know of its request beside what was decoded for it.
type Request struct {
	ID             string // of this request, in the log and in the answer's X-Request-Id
	Method, Path   string
	Route          string // the path's pattern in the contract, "" where there is none
	Actor          string // who sends it: the token's name; without a token "local" for this machine, an IP address otherwise
	Token          string // name of the token where the tokens file names it
	IdempotencyKey string
	Async          bool // Prefer: respond-async
	Gzip           bool // the client takes compressed answers

	logger *slog.Logger
	who    *access.Who
	notes  []any
}

// Note adds to the line that the log gets of the request, as slog's arguments.
func (r *Request) Note(args ...any) { r.notes = append(r.notes, args...) }

// log writes the request's line. What was refused for its token is of interest at once; what was written stands in the event log anyway,
// and what failed has a line with the error: so all else is for debugging. Neither query nor headers nor bodies are in it.
func (r *Request) log(ctx context.Context, status int, bytes int64, took time.Duration) {
	level := slog.LevelDebug
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusTooManyRequests:
		level = slog.LevelInfo
	}
	if r.logger.Enabled(ctx, level) {
		r.logger.Log(ctx, level, "request", append([]any{
			"request", r.ID, "method", r.Method, "path", r.Path, "actor", r.Actor, "status", status, "bytes", bytes, "ms", took.Milliseconds(),
		}, r.notes...)...)
	}
}

type requestKey struct{}

// RequestFrom returns what the middleware noted; never nil.
func RequestFrom(ctx context.Context) *Request {
	if r, ok := ctx.Value(requestKey{}).(*Request); ok {
		return r
	}
	return &Request{logger: slog.New(slog.DiscardHandler)}
}

var idForm = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

func newRequest(r *http.Request, logger *slog.Logger) *Request {
	id := r.Header.Get("X-Request-Id")
	if !idForm.MatchString(id) {
		id = uuid.NewString()
	}
	return &Request{
		ID: id, Method: r.Method, Path: r.URL.Path, Actor: actor(r.RemoteAddr), IdempotencyKey: r.Header.Get("Idempotency-Key"),
		Async: prefersAsync(r.Header.Values("Prefer")), Gzip: takesGzip(r.Header.Values("Accept-Encoding")), logger: logger,
	}
}

// actor makes one name of this machine's addresses, so that a repeated request has the same sender.
func actor(remote string) string {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return "local" // not a network connection
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsLoopback() {
		return "local"
	}
	return host
}

// prefersAsync reads Prefer headers (RFC 7240).
func prefersAsync(prefer []string) bool {
	for _, line := range prefer {
		for p := range strings.SplitSeq(line, ",") {
			name, _, _ := strings.Cut(p, ";")
			if strings.EqualFold(strings.TrimSpace(name), "respond-async") {
				return true
			}
		}
	}
	return false
}

// takesGzip reads Accept-Encoding headers (RFC 9110, 12.5.3); * is not taken for gzip, since few who send it mean that.
func takesGzip(accept []string) bool {
	for _, line := range accept {
		for p := range strings.SplitSeq(line, ",") {
			name, weight, _ := strings.Cut(p, ";")
			if strings.EqualFold(strings.TrimSpace(name), "gzip") {
				_, q, found := strings.Cut(weight, "=")
				return !found || strings.Trim(q, " 0.") != ""
			}
		}
	}
	return false
}
