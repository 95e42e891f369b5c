package api

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"github.com/wheelrefinery/refinery/internal/access"
)

// OpenAPI is the contract, as it is served at /openapi.yaml.
//
//go:embed openapi.yaml
var OpenAPI []byte

// MostBody is the most bytes of a body where the contract says nothing else (x-max-body).
const MostBody = 1 << 20

// contract checks requests against openapi.yaml.
type contract struct {
	doc        *openapi3.T
	router     routers.Router
	fixed      map[call]*routers.Route // of paths without parameters: the router tries one path after another
	operations map[*openapi3.Operation]*operation
}

type call struct{ method, path string }

// operation is what is asked of the contract again and again.
type operation struct {
	maxBody int64
	stream  bool // the body is passed on as it arrives
	index   bool // routed by hand
	mend    bool // what is not UTF-8 in the body is replaced, not refused
	events  bool // the answer may be events
	scope   access.Scope
	role    string // that a process needs to answer it; "": every one does
	query   map[string]*openapi3.Parameter

	generated  http.Handler
	compressed http.Handler // generated, with its answers compressed
}

// endless says that r is answered with events, each of which is sent at once.
func (o *operation) endless(r *http.Request) bool {
	return o.events && (o.query["follow"] == nil || r.URL.Query().Get("follow") == "true")
}

// everywhere are the paths that every process answers, whatever its roles: what tells of the process itself, and what became of a command,
// to which the answers of writes lead.
var everywhere = []string{"/health", "/ready", "/config", "/metrics", "/openapi.yaml", "/docs", "/session", "/commands/{id}"}

func newContract() (*contract, error) {
	doc, err := openapi3.NewLoader().LoadFromData(OpenAPI)
	if err != nil {
		return nil, fmt.Errorf("load openapi.yaml: %w", err)
	}
	// From 3.1 on, the validator compiles the schema anew for every value, which takes milliseconds. Its older code needs
	// microseconds and knows every keyword that the requests use (a test sees to that).
	doc.OpenAPI = "3.0.3"
	// The token is checked before. To check it here, the validator would read every body into memory, wheels too.
	doc.Security = nil
	router, err := gorillamux.NewRouter(doc)
	if err != nil {
		return nil, fmt.Errorf("route openapi.yaml: %w", err)
	}
	c := &contract{doc: doc, router: router, fixed: map[call]*routers.Route{}, operations: map[*openapi3.Operation]*operation{}}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			o := &operation{maxBody: MostBody, index: slices.Contains(op.Tags, "index"), query: map[string]*openapi3.Parameter{}}
			if n, ok := op.Extensions["x-max-body"].(float64); ok {
				o.maxBody = int64(n)
			}
			switch {
			case slices.Contains(everywhere, path):
			case slices.Contains(op.Tags, "write"):
				o.role = "writeapi"
			default:
				o.role = "readapi"
			}
			o.stream, _ = op.Extensions["x-stream"].(bool)
			o.mend, _ = op.Extensions["x-mend-utf8"].(bool)
			if ok := op.Responses.Status(http.StatusOK); ok != nil && ok.Value.Content != nil {
				_, o.events = ok.Value.Content["text/event-stream"]
			}
			if o.scope, err = scopeOf(method, op.Extensions); err != nil {
				return nil, err
			}
			for _, p := range slices.Concat(item.Parameters, op.Parameters) {
				if p.Value.In == openapi3.ParameterInQuery {
					o.query[p.Value.Name] = p.Value
				}
			}
			c.operations[op] = o
			if !strings.Contains(path, "{") {
				r := &http.Request{Method: method, URL: &url.URL{Path: path}}
				if c.fixed[call{method, path}], _, err = router.FindRoute(r); err != nil {
					return nil, fmt.Errorf("route %s %s: %w", method, path, err)
				}
			}
		}
	}
	return c, nil
}

// find returns the route of r, and the path's parameters unescaped; an error is 404 or 405. HEAD is GET.
func (c *contract) find(r *http.Request) (*routers.Route, map[string]string, error) {
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	if route, ok := c.fixed[call{method, r.URL.EscapedPath()}]; ok {
		return route, nil, nil
	}
	notFound := &httpError{status: http.StatusNotFound, detail: "There is nothing at this path. /openapi.yaml lists what there is."}
	probe := *r
	probe.Method = method
	route, vars, err := c.router.FindRoute(&probe)
	if errors.Is(err, routers.ErrMethodNotAllowed) {
		return nil, nil, &httpError{status: http.StatusMethodNotAllowed, detail: "This path does not know this method.", allow: c.allowed(probe)}
	}
	if err != nil {
		return nil, nil, notFound
	}
	for name, v := range vars {
		if vars[name], err = url.PathUnescape(v); err != nil || strings.Contains(vars[name], "/") {
			return nil, nil, notFound
		}
	}
	return route, vars, nil
}

// allowed lists the methods of r's path.
func (c *contract) allowed(r http.Request) string {
	var methods []string
	for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch} {
		r.Method = m
		if _, _, err := c.router.FindRoute(&r); err == nil {
			methods = append(methods, m)
			if m == http.MethodGet {
				methods = append(methods, http.MethodHead)
			}
		}
	}
	return strings.Join(methods, ", ")
}

// check validates r's parameters and body and leaves the body ready to be read again. A body that is streamed is only limited.
func (c *contract) check(w http.ResponseWriter, r *http.Request, route *routers.Route, vars map[string]string) error {
	op := c.operations[route.Operation]
	query, err := c.checkQuery(r, op)
	if err != nil {
		return err
	}
	input := &openapi3filter.RequestValidationInput{
		Request: r, PathParams: vars, QueryParams: query, Route: route,
		Options: &openapi3filter.Options{MultiError: true, SkipSettingDefaults: true},
	}
	buffered, err := prepareBody(w, r, route.Operation.RequestBody, op)
	if err != nil {
		return err
	}
	input.Options.ExcludeRequestBody = !buffered
	if err := openapi3filter.ValidateRequest(r.Context(), input); err != nil {
		return validationError(err)
	}
	return nil
}

func (c *contract) checkQuery(r *http.Request, op *operation) (url.Values, error) {
	if r.URL.RawQuery == "" {
		return url.Values{}, nil
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, badRequest("query:", "does not parse: escape it")
	}
	for name, values := range query {
		p, ok := op.query[name]
		if !ok {
			return nil, badRequest("query:", "has a parameter that is not known here")
		}
		if len(values) > 1 && !p.Schema.Value.Type.Is("array") {
			return nil, badRequest("query:"+name, "is given more than once")
		}
		for _, v := range values {
			if strings.ContainsRune(v, 0) || !utf8.ValidString(v) {
				return nil, badRequest("query:"+name, "holds NUL or is not UTF-8")
			}
		}
	}
	return query, nil
}

// prepareBody limits the body and checks its type. It reads a JSON body (buffered: the schema is to be checked) and leaves others to
// their handlers.
func prepareBody(w http.ResponseWriter, r *http.Request, spec *openapi3.RequestBodyRef, op *operation) (buffered bool, err error) {
	if r.ContentLength > op.maxBody {
		return false, &http.MaxBytesError{Limit: op.maxBody}
	}
	limited := limitBody(w, r, op)
	mediaType, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	multipart := mediaType == "multipart/form-data"
	if spec != nil && (op.stream || multipart) {
		if err != nil || spec.Value.Content.Get(mediaType) == nil {
			return false, unsupported(spec)
		}
		r.Body = limited
		r.Header.Set("Content-Type", mime.FormatMediaType(mediaType, params))
		return false, nil
	}
	body, err := readAll(limited, r.ContentLength)
	if err != nil {
		return false, err
	}
	r.Body = http.NoBody
	if op.mend {
		body = bytes.ToValidUTF8(body, []byte("\uFFFD"))
	}
	switch {
	case spec == nil:
		if s := bytes.TrimSpace(body); len(s) > 0 && string(s) != "{}" {
			return false, badRequest("", "no body is expected here")
		}
		return false, nil
	case len(body) == 0:
		if spec.Value.Required {
			return false, badRequest("", "a body is expected")
		}
		return false, nil
	case spec.Value.Content.Get(mediaType) == nil:
		return false, unsupported(spec)
	case !utf8.Valid(body):
		return false, badRequest("", "is not UTF-8")
	case !json.Valid(body):
		return false, badRequest("", "is not JSON")
	case holdsNUL(body):
		return false, badRequest("", "holds NUL (\\u0000), which is not text")
	}
	r.Header.Set("Content-Type", mediaType)
	r.ContentLength = int64(len(body))
	r.Body = newBody(body)
	r.GetBody = func() (io.ReadCloser, error) { return newBody(body), nil } // what the validator puts back
	return true, nil
}

func unsupported(spec *openapi3.RequestBodyRef) error {
	var types []string
	for t := range spec.Value.Content {
		types = append(types, t)
	}
	slices.Sort(types)
	return &httpError{status: http.StatusUnsupportedMediaType, detail: "Send the body as " + strings.Join(types, " or ") + "."}
}

// holdsNUL finds an escaped NUL in valid JSON, in which backslashes stand only within strings.
func holdsNUL(body []byte) bool {
	for {
		i := bytes.IndexByte(body, '\\')
		if i < 0 {
			return false
		}
		if bytes.HasPrefix(body[i:], []byte(`\u0000`)) {
			return true
		}
		body = body[i+2:]
	}
}
