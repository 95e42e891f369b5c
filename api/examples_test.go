package api_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/wheelrefinery/refinery/api"
)

// Every operation says what it does, and shows what is sent and what is answered; each example is one that the contract allows. Every read
// can be asked again cheaply, and waited for.
func TestContractShowsEachOperation(t *testing.T) {
	doc, err := openapi3.NewLoader().LoadFromData(api.OpenAPI)
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context(), openapi3.EnableExamplesValidation()); err != nil {
		t.Error(err)
	}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			where := method + " " + path
			if op.Summary == "" || op.Description == "" {
				t.Errorf("%s has no summary or no description", where)
			}
			if op.RequestBody != nil {
				shows(t, where+": the body", op.RequestBody.Value.Content)
			}
			for status, r := range op.Responses.Map() {
				shows(t, where+": "+status, r.Value.Content)
			}
			if method == http.MethodGet && slices.Contains(op.Tags, "read") && !momentary[path] {
				revalidates(t, where, op)
			}
		}
	}
}

// What is of this moment, or follows it, and says so.
var momentary = map[string]bool{"/health": true, "/ready": true, "/events": true}

// revalidates fails t where a read does not know ETag and 304, or min_position. The configuration has no position.
func revalidates(t *testing.T, where string, op *openapi3.Operation) {
	t.Helper()
	var names []string
	for _, p := range op.Parameters {
		names = append(names, p.Value.Name)
	}
	if !slices.Contains(names, "If-None-Match") || op.Responses.Status(http.StatusNotModified) == nil || op.Responses.Status(http.StatusOK).Value.Headers["ETag"] == nil {
		t.Errorf("%s has no ETag, or no 304", where)
	}
	if !slices.Contains(names, "min_position") && op.OperationID != "getConfig" {
		t.Errorf("%s has no min_position", where)
	}
}

// shows fails t where content has no example, or one with a field that its schema does not name. What is bytes needs none.
func shows(t *testing.T, where string, content openapi3.Content) {
	t.Helper()
	for media, c := range content {
		where := where + " as " + media
		example := c.Example
		if c.Schema != nil && example == nil {
			example = c.Schema.Value.Example
		}
		switch {
		case example != nil && c.Schema != nil:
			for _, field := range unnamed(c.Schema.Value, example, "") {
				t.Errorf("%s: the example has %s, which the schema does not name", where, field)
			}
		case example == nil && (c.Schema == nil || c.Schema.Value.Format != "binary"):
			t.Errorf("%s has no example", where)
		}
	}
}

// unnamed are the fields of v that s does not name.
func unnamed(s *openapi3.Schema, v any, at string) (found []string) {
	switch v := v.(type) {
	case map[string]any:
		for name, field := range v {
			switch p := s.Properties[name]; {
			case p != nil:
				found = append(found, unnamed(p.Value, field, at+"/"+name)...)
			case s.Properties != nil:
				found = append(found, at+"/"+name)
			}
		}
	case []any:
		for i, item := range v {
			if s.Items != nil {
				found = append(found, unnamed(s.Items.Value, item, fmt.Sprint(at, "/", i))...)
			}
		}
	}
	return found
}

// A number that is a time or a size says in which unit.
func TestContractNamesUnits(t *testing.T) {
	doc, err := openapi3.NewLoader().LoadFromData(api.OpenAPI)
	if err != nil {
		t.Fatal(err)
	}
	units := map[string]string{"ms": "millisecond", "seconds": "second", "size": "byte", "bytes": "byte", "percent": "per cent"}
	for name, s := range doc.Components.Schemas {
		for field, p := range s.Value.Properties {
			words := strings.Split(field, "_")
			unit := units[words[len(words)-1]]
			if p.Value.Type == nil || !slices.ContainsFunc(*p.Value.Type, func(kind string) bool { return kind == "integer" || kind == "number" }) {
				continue
			}
			if !strings.Contains(strings.ToLower(p.Value.Description), unit) {
				t.Errorf("%s.%s does not say that it is in %ss", name, field, unit)
			}
		}
	}
}
