package writeapi_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/commands"
	"github.com/wheelrefinery/refinery/events"
)

const libpq = `{"id": "libpq", "pattern": "libpq-fe\\.h: No such file", "recipes": [{"kind": "apt", "items": ["libpq-dev"]}],
	"severity": "error", "confidence": "high", "examples": ["libpq-fe.h: No such file or directory"], "applies_to": {"arch": ["s390x"]}}`

func TestCreateHint(t *testing.T) {
	p := start(t, gate{})
	a := p.send(http.StatusCreated, "POST", "/hints", libpq)
	if got := into[api.HintAnswer](a); got.ID != "libpq" || got.Version != 1 || len(got.Duplicates) != 0 || a.Header().Get("Location") != "/hints/libpq" {
		t.Errorf("%+v, at %q", got, a.Header().Get("Location"))
	}
	if a.Header().Get("Refinery-Position") != "1" {
		t.Errorf("position %q", a.Header().Get("Refinery-Position"))
	}
	saved := p.stream("hint/libpq")[0].Event.(events.HintSaved)
	want := events.HintSaved{Hint: events.Hint{
		ID: "libpq", Pattern: `libpq-fe\.h: No such file`, Recipes: []events.Recipe{{Kind: "apt", Items: []string{"libpq-dev"}}}, Severity: "error",
		Confidence: 0.9, Examples: []string{"libpq-fe.h: No such file or directory"}, AppliesTo: events.AppliesTo{Arch: []string{"s390x"}},
	}}
	if d := cmp.Diff(want, saved, cmpopts.IgnoreUnexported(want)); d != "" {
		t.Error(d)
	}
	p.send(http.StatusConflict, "POST", "/hints", libpq).says("of this id already")

	// Another that matches the same is taken, and said.
	p.twins = map[string][]string{saved.Hint.Twin(): {"libpq", "again"}}
	a = p.send(http.StatusCreated, "POST", "/hints", strings.Replace(libpq, `"libpq"`, `"again"`, 1))
	if got := into[api.HintAnswer](a); !cmp.Equal(got.Duplicates, []string{"libpq"}) {
		t.Errorf("%+v", got)
	}
	// The same request with its key is the same command.
	one := p.send(http.StatusCreated, "POST", "/hints", strings.Replace(libpq, `"libpq"`, `"third"`, 1), "Idempotency-Key", "k")
	two := p.send(http.StatusCreated, "POST", "/hints", strings.Replace(libpq, `"libpq"`, `"third"`, 1), "Idempotency-Key", "k")
	if one.Body.String() != two.Body.String() || len(p.stream("hint/third")) != 1 {
		t.Errorf("%s\n%s", one.Body, two.Body)
	}
}

// What is wrong with a hint is said all at once, each with its place, without the values.
func TestHintThatDoesNotHold(t *testing.T) {
	p := start(t, gate{})
	a := p.send(http.StatusUnprocessableEntity, "POST", "/hints", `{"id": "x", "pattern": "secret(", "recipes": [{"kind": "apt", "items": ["ok", "secret name", "--secret"]},
		{"kind": "env", "items": ["LD_PRELOAD=secret"]}], "examples": ["a"]}`)
	problem := into[api.Problem](a)
	var at []string
	for _, e := range problem.Errors {
		at = append(at, e.Pointer)
	}
	for _, want := range []string{"/pattern", "/recipes/0/items/1", "/recipes/0/items/2", "/recipes/1/items/0"} {
		if !strings.Contains(strings.Join(at, " ")+" ", want+" ") {
			t.Errorf("nothing is said of %s: %s", want, a.Body)
		}
	}
	if strings.Contains(a.Body.String(), "secret") {
		t.Errorf("what was sent is echoed: %s", a.Body)
	}
	for body, status := range map[string]int{
		`{"pattern": "abc"}`:                                 http.StatusUnprocessableEntity, // no id
		`{"id": "..", "pattern": "abc"}`:                     http.StatusBadRequest,
		`{"id": "import", "pattern": "abc"}`:                 http.StatusUnprocessableEntity,
		`{"id": "a", "pattern": "a*"}`:                       http.StatusUnprocessableEntity,
		`{"id": "a", "pattern": "abc", "colour": "x"}`:       http.StatusBadRequest,
		`{"id": "a", "pattern": "abc", "severity": "fatal"}`: http.StatusBadRequest,
		`{"id": "a", "pattern": "abc", "confidence": 2}`:     http.StatusBadRequest,
		`{"id": "a", "pattern": "abc", "examples": ["x"]}`:   http.StatusUnprocessableEntity,
		`[]`: http.StatusBadRequest,
		``:   http.StatusBadRequest,
	} {
		p.send(status, "POST", "/hints", body)
	}
	if head := p.log.Head(); head != 0 {
		t.Errorf("%d events", head)
	}
}

func TestPutHint(t *testing.T) {
	p := start(t, gate{})
	if got := into[api.HintAnswer](p.send(http.StatusCreated, "PUT", "/hints/libpq", libpq)); got.Version != 1 {
		t.Errorf("%+v", got)
	}
	if got := into[api.HintAnswer](p.send(http.StatusOK, "PUT", "/hints/libpq", libpq)); got.Version != 1 {
		t.Errorf("what is so already has version %d", got.Version)
	}
	other := strings.Replace(libpq, `"id": "libpq", `, "", 1)
	other = strings.Replace(other, "high", "low", 1)
	p.send(http.StatusPreconditionFailed, "PUT", "/hints/libpq", other, "If-Match", `"2"`).says("read it again")
	if got := into[api.HintAnswer](p.send(http.StatusOK, "PUT", "/hints/libpq", other, "If-Match", `"1.5.3.2"`)); got.Version != 2 {
		t.Errorf("%+v", got)
	}
	p.send(http.StatusPreconditionFailed, "PUT", "/hints/libpq", libpq, "If-Match", `"1.5.3.2"`).says("read it again")
	p.send(http.StatusPreconditionFailed, "PUT", "/hints/none", other, "If-Match", `"1"`).says("read it again")
	p.send(http.StatusUnprocessableEntity, "PUT", "/hints/libpq", strings.Replace(libpq, `"libpq"`, `"x"`, 1)).says("/id is not that of the path")
	for _, bad := range []string{"1", `"0"`, `W/"1"`, `"x"`, `"1", "2"`, "*"} {
		p.send(http.StatusBadRequest, "PUT", "/hints/libpq", libpq, "If-Match", bad)
	}
}

func TestDeleteHint(t *testing.T) {
	p := start(t, gate{})
	p.send(http.StatusNotFound, "DELETE", "/hints/libpq", nil).says("no hint of this id")
	p.send(http.StatusCreated, "PUT", "/hints/libpq", libpq)
	p.send(http.StatusPreconditionFailed, "DELETE", "/hints/libpq", nil, "If-Match", `"7"`)
	if a := p.send(http.StatusNoContent, "DELETE", "/hints/libpq", nil, "If-Match", `"1"`); a.Body.Len() > 0 {
		t.Errorf("%s", a.Body)
	}
	p.send(http.StatusNotFound, "DELETE", "/hints/libpq", nil)
}

func TestImportHints(t *testing.T) {
	p := start(t, gate{})
	p.send(http.StatusCreated, "PUT", "/hints/kept", `{"pattern": "kept pattern", "severity": "error"}`)
	p.twins = map[string][]string{events.Hint{Pattern: "twin pattern"}.Twin(): {"earlier", "twin"}}
	yaml := `
- {id: new, pattern: new pattern, recipes: {apt: [libx-dev]}, confidence: low}
- {id: kept, pattern: kept pattern}
- {id: bad, pattern: 'bad(', recipes: [{kind: brew, items: [x]}], colour: blue}
- {id: new, pattern: another pattern}
- {id: other, pattern: new pattern}
- {id: twin, pattern: twin pattern}
- {pattern: 'named by its pattern'}
`
	a := into[api.HintImportAnswer](p.send(http.StatusOK, "POST", "/hints/import", strings.NewReader(yaml), "Content-Type", "application/yaml"))
	if a.Taken != 3 || a.Kept != 1 || a.Refused != 3 || a.Pending != 0 || len(a.Items) != 7 {
		t.Errorf("%+v", a)
	}
	var results []string
	for i, item := range a.Items {
		results = append(results, string(item.Result))
		if item.Index != i {
			t.Errorf("item %d has index %d", i, item.Index)
		}
		if (item.Result == api.HintResultRefused) != (len(item.Errors) > 0) {
			t.Errorf("%+v", item)
		}
	}
	if want := "taken kept refused refused refused taken taken"; strings.Join(results, " ") != want {
		t.Errorf("%v, want %s", results, want)
	}
	if a.Items[2].Errors[0].Pointer == "" || !strings.Contains(a.Items[3].Errors[0].Detail, "entry 0") || !strings.Contains(a.Items[4].Errors[0].Detail, "entry 0") {
		t.Errorf("%+v", a.Items[2:5])
	}
	if !cmp.Equal(a.Items[5].Duplicates, []string{"earlier"}) || !strings.HasPrefix(a.Items[6].ID, "pattern-") {
		t.Errorf("%+v", a.Items[5:])
	}
	if got := p.stream("hint/new"); len(got) != 1 || got[0].Event.(events.HintSaved).Hint.Confidence != 0.3 {
		t.Errorf("%+v", got)
	}

	// The errors form, and JSON; an entry that is there is replaced.
	body := `{"errors": [{"pattern": "ffi\\.h: No such", "packages": {"dnf": ["libffi-devel"], "apt": ["libffi-dev"]}}]}`
	a = into[api.HintImportAnswer](p.send(http.StatusOK, "POST", "/hints/import", body))
	if a.Taken != 1 || len(p.stream("hint/"+a.Items[0].ID)) != 1 {
		t.Errorf("%+v", a)
	}
	a = into[api.HintImportAnswer](p.send(http.StatusOK, "POST", "/hints/import", `[{"id": "new", "pattern": "changed"}]`))
	if a.Taken != 1 || len(p.stream("hint/new")) != 2 {
		t.Errorf("%+v", a)
	}
	// With a key it is the same import; another with the key is none.
	for range 2 {
		a = into[api.HintImportAnswer](p.send(http.StatusOK, "POST", "/hints/import", `[{"id": "keyed", "pattern": "one"}]`, "Idempotency-Key", "k"))
		if a.Taken != 1 {
			t.Errorf("%+v", a)
		}
	}
	a = into[api.HintImportAnswer](p.send(http.StatusOK, "POST", "/hints/import", `[{"id": "keyed", "pattern": "two"}]`, "Idempotency-Key", "k"))
	if a.Refused != 1 || !strings.Contains(a.Items[0].Errors[0].Detail, "Idempotency-Key") {
		t.Errorf("%+v", a)
	}
	// Who does not wait learns the commands.
	a = into[api.HintImportAnswer](p.send(http.StatusAccepted, "POST", "/hints/import", `[{"id": "later", "pattern": "later"}]`, "Prefer", "respond-async"))
	if a.Pending != 1 || a.Items[0].Command.String() == "" {
		t.Errorf("%+v", a)
	}

	if a = into[api.HintImportAnswer](p.send(http.StatusOK, "POST", "/hints/import", `[]`)); a.Items == nil || len(a.Items) != 0 {
		t.Errorf("%+v", a)
	}
	p.send(http.StatusUnprocessableEntity, "POST", "/hints/import", `{"hints": 1}`)
	p.send(http.StatusUnprocessableEntity, "POST", "/hints/import", strings.NewReader("a: [b\n"), "Content-Type", "text/yaml")
	p.send(http.StatusUnsupportedMediaType, "POST", "/hints/import", strings.NewReader("x"), "Content-Type", "text/plain")
	p.send(http.StatusRequestEntityTooLarge, "POST", "/hints/import", strings.NewReader(strings.Repeat(" ", 5_000_001)), "Content-Type", "text/yaml")
}

// Thousands of entries are one publish, and all are decided.
func TestImportMany(t *testing.T) {
	p := start(t, gate{})
	type entry struct {
		ID      string `json:"id"`
		Pattern string `json:"pattern"`
	}
	list := make([]entry, 5_000)
	for i := range list {
		list[i] = entry{fmt.Sprintf("h-%d", i), fmt.Sprintf("pattern number %d", i)}
	}
	body, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	a := into[api.HintImportAnswer](p.send(http.StatusOK, "POST", "/hints/import", string(body)))
	if a.Taken != len(list) {
		t.Errorf("%d taken, %d kept, %d refused, %d pending", a.Taken, a.Kept, a.Refused, a.Pending)
	}
}

// A bus that is down stores none of an import, and says so.
func TestImportWithoutBus(t *testing.T) {
	p := start(t, gate{send: func(commands.Meta, commands.Command) error { return errDown }})
	p.send(http.StatusServiceUnavailable, "POST", "/hints/import", `[{"id": "a", "pattern": "abc"}]`).says("the bus is down")
}
