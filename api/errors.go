package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"

	"github.com/wheelrefinery/refinery/internal/fault"
)

// codes is the one table from error codes to HTTP.
var codes = map[fault.Code]struct {
	status int
	title  string
}{
	fault.Invalid:      {http.StatusUnprocessableEntity, "The request does not hold"},
	fault.NotFound:     {http.StatusNotFound, "Not found"},
	fault.Conflict:     {http.StatusConflict, "The state does not allow it"},
	fault.Changed:      {http.StatusPreconditionFailed, "It has changed"},
	fault.Unauthorized: {http.StatusUnauthorized, "A token is needed"},
	fault.Forbidden:    {http.StatusForbidden, "Not allowed"},
	fault.TooLarge:     {http.StatusRequestEntityTooLarge, "Too large"},
	fault.Unavailable:  {http.StatusServiceUnavailable, "Not available now"},
	fault.Timeout:      {http.StatusGatewayTimeout, "It took too long"},
	fault.Upstream:     {http.StatusBadGateway, "Another server failed"},
	fault.Internal:     {http.StatusInternalServerError, "Internal error"},
}

// typePrefix begins the type of every problem; a code of the table or of an httpError follows.
const typePrefix = "urn:wheelrefinery:problem:"

// errGone says that the answer could not be written, because the client has gone.
var errGone = errors.New("the client has gone")

// httpError is trouble that HTTP itself knows and the rest of the program does not.
type httpError struct {
	status int
	detail string
	fields []fault.Field
	allow  string // with 405
	retry  string // seconds to wait
}

func (e *httpError) Error() string { return e.detail }

func badRequest(pointer, detail string) error {
	return &httpError{
		status: http.StatusBadRequest, detail: "The request is not of the expected form: see errors.",
		fields: []fault.Field{{Pointer: pointer, Detail: detail}},
	}
}

// NewProblem is the problem of a code, without what belongs to one request. It serves stored refusals, such as a command's.
func NewProblem(e *fault.Error) Problem {
	c, ok := codes[e.Code]
	if !ok {
		c = codes[fault.Internal]
	}
	p := Problem{Type: typePrefix + strings.ReplaceAll(string(e.Code), "_", "-"), Title: c.title, Status: c.status, Detail: e.Message}
	for _, f := range e.Fields {
		p.Errors = append(p.Errors, FieldError{Pointer: f.Pointer, Detail: f.Detail})
	}
	return p
}

// WriteProblem answers with the problem that err stands for, as application/problem+json. An error without a code is Internal: it is
// logged, and the answer names only the request. What is invalid is 400 on a read, where it can only be the query, and 422 elsewhere.
func WriteProblem(w http.ResponseWriter, r *http.Request, err error) {
	info := RequestFrom(r.Context())
	if errors.Is(err, errGone) || errors.Is(err, context.Canceled) && r.Context().Err() != nil {
		info.logger.Debug("the client has gone", "request", info.ID, "path", r.URL.Path)
		return
	}
	var p Problem
	switch e := classify(err).(type) {
	case *httpError:
		p = Problem{Type: typePrefix + strings.ReplaceAll(strings.ToLower(http.StatusText(e.status)), " ", "-"), Title: http.StatusText(e.status), Status: e.status, Detail: e.detail}
		for _, f := range e.fields {
			p.Errors = append(p.Errors, FieldError{Pointer: f.Pointer, Detail: f.Detail})
		}
		if e.allow != "" {
			w.Header().Set("Allow", e.allow)
		}
		if e.retry != "" {
			w.Header().Set("Retry-After", e.retry)
		}
	case *fault.Error:
		p = NewProblem(e)
		if e.Code == fault.Invalid && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
			p.Status = http.StatusBadRequest
		}
	}
	switch p.Status {
	case http.StatusInternalServerError:
		info.logger.Error("a request failed", "request", info.ID, "method", r.Method, "path", r.URL.Path, "error", err)
		p.Detail, p.Errors = "This is a defect. The server's log says more under the request id.", nil
		p.RequestID = info.ID
	case http.StatusServiceUnavailable:
		info.logger.Warn("a part is not available", "request", info.ID, "path", r.URL.Path, "error", err)
		w.Header().Set("Retry-After", "2")
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", `Bearer realm="refinery"`)
		if strings.HasPrefix(info.Route, "/simple/") || strings.HasPrefix(info.Route, "/artifacts/") { // pip and uv know no other
			w.Header().Add("WWW-Authenticate", `Basic realm="refinery", charset="UTF-8"`)
		}
	case http.StatusForbidden:
		if e, ok := errors.AsType[*scopeError](err); ok {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="refinery", error="insufficient_scope", scope="%s"`, e.scope))
		}
	}
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // who would not read it cannot be told either
}

// classify finds the *httpError or *fault.Error that err is.
func classify(err error) error {
	if e, ok := errors.AsType[*httpError](err); ok {
		return e
	}
	if e, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return fault.New(fault.TooLarge, "The body is larger than %d bytes, which is the most here.", e.Limit)
	}
	if e, ok := errors.AsType[*fault.Error](err); ok {
		return e
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fault.New(fault.Timeout, "It took too long. Try again.")
	}
	if e := database(err); e != nil {
		return e
	}
	return &fault.Error{Code: fault.Internal}
}

// bodyError rewrites what the generated server finds wrong with a body that the schema let pass.
func bodyError(err error) error {
	switch classify(err).(type) {
	case *httpError:
		return err
	default:
		if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
			return err
		}
		return badRequest("", "does not decode: a number may be too large, or a time or id malformed")
	}
}

// parameterError rewrites what the generated server finds wrong with a parameter.
func parameterError(err error) error {
	name := ""
	if e, ok := errors.AsType[*InvalidParamFormatError](err); ok {
		name = e.ParamName
	} else if e, ok := errors.AsType[*RequiredParamError](err); ok {
		name = e.ParamName
	} else if e, ok := errors.AsType[*RequiredHeaderError](err); ok {
		name = e.ParamName
	} else if e, ok := errors.AsType[*TooManyValuesForParamError](err); ok {
		name = e.ParamName
	}
	return badRequest("query:"+name, "is missing, given twice, or not of its type")
}

// validationError rewrites what the validator found: where, and which rule, never the value.
func validationError(err error) error {
	e := &httpError{status: http.StatusBadRequest, detail: "The request is not of the expected form: see errors."}
	e.collect(err, "")
	return e
}

// mostFields bounds how many bad fields one answer names.
const mostFields = 20

func (e *httpError) collect(err error, at string) {
	if len(e.fields) == mostFields {
		return
	}
	switch x := err.(type) {
	case openapi3.MultiError:
		for _, err := range x {
			e.collect(err, at)
		}
	case *openapi3filter.RequestError:
		if x.Parameter != nil {
			at = x.Parameter.In + ":" + x.Parameter.Name
		}
		e.collect(x.Err, at)
	case *openapi3.SchemaError:
		var pointer strings.Builder
		pointer.WriteString(at)
		keys := x.JSONPointer()
		if x.SchemaField == "properties" {
			// The error is about the object; only its text names the field that is not known.
			_, name, _ := strings.Cut(x.Reason, "property ")
			name, _ = strconv.QuotedPrefix(name)
			name, _ = strconv.Unquote(name)
			keys = append(keys, name)
		}
		for _, key := range keys {
			if len(key) > 64 {
				key = key[:64] + "…"
			}
			pointer.WriteString("/" + strings.ToValidUTF8(strings.NewReplacer("~", "~0", "/", "~1").Replace(key), "�"))
		}
		e.fields = append(e.fields, fault.Field{Pointer: pointer.String(), Detail: rule(x)})
	default:
		detail := "is not of its type"
		if errors.Is(err, openapi3filter.ErrInvalidRequired) {
			detail = "is missing"
		}
		e.fields = append(e.fields, fault.Field{Pointer: at, Detail: detail})
	}
}

// rule says which rule of the schema was broken.
func rule(e *openapi3.SchemaError) string {
	s := e.Schema
	switch e.SchemaField {
	case "type":
		if s.Type != nil {
			return "must be of type " + strings.Join(*s.Type, " or ")
		}
	case "required":
		return "is missing"
	case "properties":
		return "is not known here"
	case "enum":
		return fmt.Sprintf("must be one of %v", s.Enum)
	case "pattern":
		return "must match " + s.Pattern
	case "format":
		return "must be of the format " + s.Format
	case "minLength":
		return fmt.Sprintf("must have at least %d characters", s.MinLength)
	case "maxLength":
		return fmt.Sprintf("must have at most %d characters", *s.MaxLength)
	case "minItems":
		return fmt.Sprintf("must have at least %d items", s.MinItems)
	case "maxItems":
		return fmt.Sprintf("must have at most %d items", *s.MaxItems)
	case "minimum":
		return "must be at least " + strconv.FormatFloat(*s.Min, 'f', -1, 64)
	case "maximum":
		return "must be at most " + strconv.FormatFloat(*s.Max, 'f', -1, 64)
	case "nullable":
		return "must not be null"
	}
	return "breaks the rule " + e.SchemaField
}
