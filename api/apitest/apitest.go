// Package apitest checks in tests that what a server answers is what openapi.yaml promises.
package apitest

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"github.com/wheelrefinery/refinery/api"
)

var contract = sync.OnceValues(func() (routers.Router, error) {
	doc, err := openapi3.NewLoader().LoadFromData(api.OpenAPI)
	if err != nil {
		return nil, err
	}
	return gorillamux.NewRouter(doc)
})

// Check passes requests on to h and fails t when an answer is not documented or does not fit its schema. It holds each answer in memory.
func Check(t testing.TB, h http.Handler) http.Handler {
	router, err := contract()
	if err != nil {
		t.Fatal(err)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		probe := r.Clone(r.Context())
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		check(t, router, probe, rec)
		for name, values := range rec.Header() {
			w.Header()[name] = values
		}
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes())
	})
}

func check(t testing.TB, router routers.Router, r *http.Request, rec *httptest.ResponseRecorder) {
	t.Helper()
	if rec.Code >= 400 && r.Method != http.MethodHead && !strings.HasPrefix(rec.Header().Get("Content-Type"), "application/problem+json") &&
		!(r.URL.Path == "/ready" && rec.Code == http.StatusServiceUnavailable) {
		t.Errorf("%s %s: %d is not a problem but %q", r.Method, r.URL.Path, rec.Code, rec.Header().Get("Content-Type"))
	}
	route, vars, err := router.FindRoute(r)
	if err != nil {
		if rec.Code < 400 && r.Method != http.MethodHead {
			t.Errorf("%s %s: %d, and the contract does not know it: %v", r.Method, r.URL.Path, rec.Code, err)
		}
		return
	}
	input := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: r, PathParams: vars, Route: route},
		Status:                 rec.Code, Header: rec.Header(),
		Options: &openapi3filter.Options{IncludeResponseStatus: true, ExcludeResponseBody: slices.Contains(route.Operation.Tags, "index")},
	}
	body := rec.Body.Bytes()
	if rec.Header().Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(bytes.NewReader(body))
		if err == nil {
			body, err = io.ReadAll(z)
		}
		if err != nil {
			t.Errorf("%s %s: the answer is not gzip: %v", r.Method, r.URL.Path, err)
		}
	}
	input.SetBodyBytes(bytes.Clone(body))
	if err := openapi3filter.ValidateResponse(r.Context(), input); err != nil {
		t.Errorf("%s %s answers %d with what the contract does not allow: %v\n%s", r.Method, r.URL.Path, rec.Code, err, body)
	}
}
