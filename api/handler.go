package api

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/mux"
	"github.com/klauspost/compress/gzhttp"

	"github.com/wheelrefinery/refinery/internal/access"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// Options configures the handler.
type Options struct {
	Logger *slog.Logger
	// Guard knows the tokens; nil: everything is open.
	Guard   *access.Guard
	Metrics http.Handler // of /metrics; nil: there is none
	// Done is told of every request once it was answered; r's context is that of its handler. nil: nobody wants to know.
	Done func(r *http.Request, info *Request, status int, took time.Duration)
	// Loopback says that only this machine can connect. Requests must then name it by address or as localhost, so that no web page
	// reaches the API through a name of its own that resolves to it (DNS rebinding).
	Loopback bool
	// Absent names the roles that this process does not have, of "writeapi" and "readapi": other processes answer their operations.
	Absent []string
	// Position is the last position that every read model is known to cover. Answers that know theirs say that instead. nil: others say none.
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
	for _, op := range contract.operations {
		op.generated = router
	}
	err = router.Walk(func(r *mux.Route, _ *mux.Router, _ []*mux.Route) error {
		path, err := r.GetPathTemplate()
		methods, _ := r.GetMethods()
		for _, method := range methods {
			if fixed, ok := contract.fixed[call{method, path}]; ok { // need not be routed a second time
				contract.operations[fixed.Operation].generated = r.GetHandler()
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("route the generated handlers: %w", err)
	}
	for _, op := range contract.operations {
		op.compressed = compress(op.generated)
	}
	return &handler{
		options: o, contract: contract, index: index, simple: compress(index), document: compress(http.HandlerFunc(document)),
		origin: http.NewCrossOriginProtection(), guard: o.Guard,
		docs: sync.OnceValues(func() (*docs, error) { return newDocs(contract.doc) }), // most never read them
	}, nil
}

type handler struct {
	options  Options
	contract *contract
	index    http.Handler
	simple   http.Handler // the pages of index, not its files
	document http.Handler
	origin   *http.CrossOriginProtection
	guard    *access.Guard // nil: everything is open
	docs     func() (*docs, error)
}

func (h *handler) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	begin := time.Now()
	info := newRequest(r, h.options.Logger)
	r = r.WithContext(context.WithValue(r.Context(), requestKey{}, info))
	w := &writer{ResponseWriter: rw, control: http.NewResponseController(rw)}
	if r.ContentLength != 0 { // lifted at the body's end, wherever it is read to
		_ = w.control.SetReadDeadline(begin.Add(bodyTime)) // a test's recorder does not know it
	}
	w.extend()
	head := w.Header()
	head.Set("X-Request-Id", info.ID)
	head["X-Content-Type-Options"], head["Referrer-Policy"], head["Content-Security-Policy"] = nosniff, noReferrer, noContent
	head["Cross-Origin-Resource-Policy"] = sameOrigin
	if h.options.Position != nil {
		head.Set("Refinery-Position", strconv.FormatInt(h.options.Position(), 10))
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
		took := time.Since(begin)
		info.log(r.Context(), w.status, w.bytes, took)
		if h.options.Done != nil {
			h.options.Done(r, info, w.status, took)
		}
	}()
	if err := h.serve(w, r, info); err != nil {
		WriteProblem(w, r, err)
	}
}

// What every answer says: it is nothing to run, to frame or to load from elsewhere, and its address, which may hold a token, is not told.
var (
	nosniff    = []string{"nosniff"}
	noReferrer = []string{"no-referrer"}
	noContent  = []string{"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"}
	sameOrigin = []string{"same-origin"}
)

func (h *handler) serve(w http.ResponseWriter, r *http.Request, info *Request) error {
	if h.options.Loopback && !local(r.Host) {
		return fault.New(fault.Forbidden, "This server listens on this machine only: use http://localhost or its address.")
	}
	if err := h.origin.Check(r); err != nil {
		return fault.New(fault.Forbidden, "A page of another origin may not write here.")
	}
	route, vars, missing := h.contract.find(r)
	op := &operation{}
	switch {
	case missing == nil:
		op, info.Route = h.contract.operations[route.Operation], route.Path
	case safe(r.Method):
		op.scope = access.Read
	default:
		op.scope = access.Write
	}
	if err := h.admit(r, info, op.scope); err != nil {
		return err
	}
	if missing != nil {
		return missing
	}
	if slices.Contains(h.options.Absent, op.role) {
		return fault.New(fault.NotFound, "This process does not have the role %s (ROLES): send this to one that has.", op.role)
	}
	switch route.Path {
	case "/openapi.yaml":
		h.document.ServeHTTP(w, r)
		return nil
	case "/simple/", "/simple/{project}/":
		h.simple.ServeHTTP(w, r)
		return nil
	case "/docs":
		d, err := h.docs()
		if err != nil {
			return err
		}
		d.ServeHTTP(w, r)
		return nil
	case "/metrics":
		if h.options.Metrics == nil {
			return fault.New(fault.NotFound, "This server keeps no metrics.")
		}
		h.options.Metrics.ServeHTTP(w, r)
		return nil
	case "/session":
		if err := h.contract.check(w, r, route, vars); err != nil {
			return err
		}
		return h.session(w, r, info)
	}
	if op.index {
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
	if op.endless(r) {
		op.generated.ServeHTTP(w, r)
	} else {
		op.compressed.ServeHTTP(w, r)
	}
	return nil
}

// documentTag names the contract as it is now.
var documentTag = sync.OnceValue(func() string {
	sum := sha256.Sum256(OpenAPI)
	return fmt.Sprintf(`W/"%x"`, sum[:8])
})

func document(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "application/yaml")
	h.Set("Cache-Control", "no-cache")
	h.Set("ETag", documentTag())
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(OpenAPI))
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

// writeTime is how long a client may take to receive a piece of an answer. Streams that set deadlines of their own are left alone.
var writeTime = 60 * time.Second

const pieceBytes = 1 << 20 // of a file

// writer notes what was answered, and gives the client writeTime for each piece of it.
type writer struct {
	http.ResponseWriter
	control *http.ResponseController
	own     bool // the handler sets deadlines itself
	status  int
	bytes   int64
}

func (w *writer) extend() {
	if !w.own {
		_ = w.control.SetWriteDeadline(time.Now().Add(writeTime)) // a test's recorder does not know it
	}
}

// SetWriteDeadline is for http.ResponseController: from then on the deadlines are the caller's.
func (w *writer) SetWriteDeadline(t time.Time) error {
	w.own = true
	return w.control.SetWriteDeadline(t)
}

func (w *writer) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
	}
	w.extend()
	w.ResponseWriter.WriteHeader(status)
}

func (w *writer) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	w.extend()
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, err
}

// ReadFrom lets files be sent without being read into the program.
func (w *writer) ReadFrom(r io.Reader) (int64, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	var sum int64
	for {
		w.extend()
		n, err := io.CopyN(w.ResponseWriter, r, pieceBytes)
		sum, w.bytes = sum+n, w.bytes+n
		if errors.Is(err, io.EOF) {
			return sum, nil
		}
		if err != nil {
			return sum, err
		}
	}
}

// Unwrap is for http.ResponseController.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// headWriter leaves the body out.
type headWriter struct{ http.ResponseWriter }

func (headWriter) Write(p []byte) (int, error) { return len(p), nil }

func (w headWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
