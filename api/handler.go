package api

import (
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/mux"
	"github.com/klauspost/compress/gzhttp"

	"github.com/wheelrefinery/refinery/internal/fault"
)

// Options configures the handler.
type Options struct {
	Logger *slog.Logger
	Token  string // when set, every write needs it
	// Loopback says that only this machine can connect. Requests must then name it by address or as localhost, so that no web page
	// reaches the API through a name of its own that resolves to it (DNS rebinding).
	Loopback bool
	// Position is the last position that every read model is known to cover. Answers that know theirs say that instead.
	Position func() int64
}

// New makes the handler of the whole contract: server answers the operations tagged read and write, index those tagged index.
func New(o Options, server StrictServerInterface, index http.Handler) (http.Handler, error) {
	contract, err := newContract()
	if err != nil {
		return nil, err
	}
	compress, err := gzhttp.NewWrapper(gzhttp.EnableZstd(false), gzhttp.CompressionLevel(gzip.BestSpeed), gzhttp.ContentTypes([]string{
		"application/json", "application/yaml", "application/vnd.pypi.simple.v1+json", "application/vnd.pypi.simple.v1+html", "text/html", "text/plain",
	}))
	if err != nil {
		return nil, fmt.Errorf("compress answers: %w", err)
	}
	router := mux.NewRouter().SkipClean(true)
	HandlerWithOptions(NewStrictHandlerWithOptions(server, nil, StrictHTTPServerOptions{
		RequestErrorHandlerFunc: func(w http.ResponseWriter, r *http.Request, err error) {
			WriteProblem(w, r, bodyError(err))
		},
		ResponseErrorHandlerFunc: WriteProblem,
	}), GorillaServerOptions{
		BaseRouter: router,
		ErrorHandlerFunc: func(w http.ResponseWriter, r *http.Request, err error) {
			WriteProblem(w, r, parameterError(err))
		},
	})
	return &handler{
		options: o, contract: contract, generated: compress(router), index: index, simple: compress(index), document: compress(http.HandlerFunc(document)),
		origin: http.NewCrossOriginProtection(), token: sha256.Sum256([]byte(o.Token)),
	}, nil
}

type handler struct {
	options   Options
	contract  *contract
	generated http.Handler
	index     http.Handler
	simple    http.Handler // the pages of index, not its files
	document  http.Handler
	origin    *http.CrossOriginProtection
	token     [sha256.Size]byte
}

func (h *handler) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	begin := time.Now()
	info := newRequest(r, h.options.Logger)
	r = r.WithContext(context.WithValue(r.Context(), requestKey{}, info))
	w := &writer{ResponseWriter: rw}
	w.Header().Set("X-Request-Id", info.ID)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if h.options.Position != nil {
		w.Header().Set("Refinery-Position", strconv.FormatInt(h.options.Position(), 10))
	}
	defer func() {
		if v := recover(); v != nil {
			if v == http.ErrAbortHandler {
				panic(v)
			}
			h.options.Logger.Error("a handler panicked", "request", info.ID, "panic", v, "stack", string(debug.Stack()))
			if w.status != 0 {
				panic(http.ErrAbortHandler) // half an answer must not look like a whole one
			}
			WriteProblem(w, r, fmt.Errorf("panic: %v", v))
		}
		h.options.Logger.Debug("request", "request", info.ID, "method", info.Method, "path", info.Path, "actor", info.Actor,
			"status", w.status, "bytes", w.bytes, "ms", time.Since(begin).Milliseconds())
	}()
	if err := h.serve(w, r); err != nil {
		WriteProblem(w, r, err)
	}
}

func (h *handler) serve(w http.ResponseWriter, r *http.Request) error {
	if h.options.Loopback && !local(r.Host) {
		return fault.New(fault.Forbidden, "This server listens on this machine only: use http://localhost or its address.")
	}
	if err := h.origin.Check(r); err != nil {
		return fault.New(fault.Forbidden, "A page of another origin may not write here.")
	}
	known := h.authorized(r) // also takes the token out of the query
	if !known && !safe(r.Method) {
		return fault.New(fault.Unauthorized, "Send the server's token in X-Worker-Token, or as Authorization: Bearer.")
	}
	route, vars, err := h.contract.find(r)
	if err != nil {
		return err
	}
	switch {
	case route.Path == "/openapi.yaml":
		h.document.ServeHTTP(w, r)
		return nil
	case strings.HasPrefix(route.Path, "/simple/"):
		h.simple.ServeHTTP(w, r)
		return nil
	case h.contract.operations[route.Operation].index:
		h.index.ServeHTTP(w, r)
		return nil
	}
	if err := h.contract.check(w, r, route, vars); err != nil {
		return err
	}
	if r.Method == http.MethodHead {
		get := *r
		get.Method = http.MethodGet
		r, w = &get, headWriter{w}
	}
	h.generated.ServeHTTP(w, r)
	return nil
}

func document(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/yaml")
	_, _ = w.Write(OpenAPI) // fails when the client has gone
}

func safe(method string) bool {
	return method == http.MethodGet || method == http.MethodHead || method == http.MethodOptions
}

// local says that host names this machine by address or as localhost.
func local(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return strings.EqualFold(host, "localhost") || net.ParseIP(strings.Trim(host, "[]")) != nil
}

// TokenCookie is the cookie that may carry the token.
const TokenCookie = "refinery_token"

// authorized says that r carries the token, or that none is needed. It takes the token out of r's query.
func (h *handler) authorized(r *http.Request) bool {
	offers := []string{r.Header.Get("X-Worker-Token")}
	if scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "Bearer") {
		offers = append(offers, strings.TrimSpace(token))
	}
	if c, err := r.Cookie(TokenCookie); err == nil {
		offers = append(offers, c.Value)
	}
	if strings.Contains(r.URL.RawQuery, "token=") {
		var kept []string
		for part := range strings.SplitSeq(r.URL.RawQuery, "&") {
			if value, ok := strings.CutPrefix(part, "token="); ok {
				value, _ = url.QueryUnescape(value) // what does not unescape is no token
				offers = append(offers, value)
			} else {
				kept = append(kept, part)
			}
		}
		u := *r.URL
		u.RawQuery = strings.Join(kept, "&")
		r.URL, r.RequestURI = &u, u.RequestURI()
	}
	if h.options.Token == "" {
		return true
	}
	found := 0
	for _, offer := range offers {
		sum := sha256.Sum256([]byte(offer)) // so that the time does not depend on the length either
		found |= subtle.ConstantTimeCompare(sum[:], h.token[:])
	}
	return found == 1
}

// writer notes what was answered.
type writer struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (w *writer) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *writer) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, err
}

// ReadFrom lets files be sent without being read into the program.
func (w *writer) ReadFrom(r io.Reader) (int64, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := io.Copy(w.ResponseWriter, r)
	w.bytes += n
	return n, err
}

// Unwrap is for http.ResponseController.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// headWriter leaves the body out.
type headWriter struct{ http.ResponseWriter }

func (headWriter) Write(p []byte) (int, error) { return len(p), nil }

func (w headWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
