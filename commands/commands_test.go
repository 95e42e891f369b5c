package commands

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

func meta() Meta { return Meta{ID: uuid.Must(uuid.NewV7()), Actor: "tester"} }

func payload(t testing.TB, m Meta, c Command) []byte {
	t.Helper()
	p, err := Encode(m, c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestEncode(t *testing.T) {
	m := Meta{ID: runA, Actor: "tester", Correlation: runB, Causation: 7, Digest: "d"}
	got, c, err := Decode(payload(t, m, enqueue))
	if err != nil || got != m || cmp.Diff(enqueue, c) != "" {
		t.Errorf("%+v, %#v, %v", got, c, err)
	}
	m.Correlation = uuid.Nil
	if got, _, err := Decode(payload(t, m, enqueue)); err != nil || got.Correlation != m.ID {
		t.Errorf("a command that begins a conversation has correlation %s, want its id; %v", got.Correlation, err)
	}
	if _, err := Encode(m, EnqueueBuild{}); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("an invalid command gives %v", err)
	}
	large := record
	large.Nodes = nil
	for i := range mostNodes {
		n := nodes[0]
		n.Name, n.Constraints = fmt.Sprintf("n%d", i), []string{strings.Repeat("x", 1000)}
		large.Nodes = append(large.Nodes, n)
	}
	if _, err := Encode(m, large); fault.CodeOf(err) != fault.TooLarge {
		t.Errorf("5 MB give %v", err)
	}
}

// What cannot be decoded is Invalid, whatever it is, so that it is not tried again.
func TestDecodeRefuses(t *testing.T) {
	data := `"data":{"build":{"name":"flask","version":"3.0.0","python_tag":"cp311","platform_tag":"any"},"attempt":1}`
	id := `"id":"` + runA.String() + `"`
	if _, c, err := Decode([]byte(`{` + id + `,"actor":"me","name":"build.start",` + data + `}`)); err != nil || c.(StartBuild).Attempt != 1 {
		t.Fatalf("the good one: %#v, %v", c, err)
	}
	for name, p := range map[string]string{
		"nothing":          "",
		"no JSON":          "x",
		"null":             "null",
		"a list":           "[]",
		"cut":              `{` + id,
		"no name":          `{` + id + `,` + data + `}`,
		"an unknown name":  `{` + id + `,"name":"build.steal",` + data + `}`,
		"an event's name":  `{` + id + `,"name":"build.started.v1",` + data + `}`,
		"no data":          `{` + id + `,"name":"build.start"}`,
		"null data":        `{` + id + `,"name":"build.start","data":null}`,
		"other data":       `{` + id + `,"name":"build.start","data":{"build":1}}`,
		"invalid data":     `{` + id + `,"name":"build.start","data":{"attempt":1}}`,
		"a second value":   `{` + id + `,"name":"queue.resume","data":{}} {}`,
		"no id":            `{"name":"queue.resume","data":{}}`,
		"an empty id":      `{"id":"00000000-0000-0000-0000-000000000000","name":"queue.resume","data":{}}`,
		"a bad id":         `{"id":"1","name":"queue.resume","data":{}}`,
		"an actor of NUL":  `{` + id + `,"actor":"\u0000","name":"queue.resume","data":{}}`,
		"a digest of NUL":  `{` + id + `,"digest":"\u0000","name":"queue.resume","data":{}}`,
		"an endless actor": `{` + id + `,"actor":"` + strings.Repeat("a", 1<<20) + `","name":"queue.resume","data":{}}`,
	} {
		if m, _, err := Decode([]byte(p)); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		} else if !clean(m.Actor, 1000) || !clean(m.Digest, 1000) {
			t.Errorf("%s: %+v cannot be stored", name, m)
		}
	}
}

// A command without an id would be the duplicate of the one before it.
func TestEncodeWantsAnID(t *testing.T) {
	if _, err := Encode(Meta{Actor: "tester"}, ResumeQueue{}); err == nil {
		t.Error("a command without an id was encoded")
	}
}

func TestRegisterTwice(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("one name was registered twice")
		}
	}()
	register[ResumeQueue]()
}

// Whatever decodes and validates, decides without a panic and survives the bus unchanged.
func FuzzDecode(f *testing.F) {
	for _, c := range whole {
		f.Add(payload(f, Meta{ID: runA, Actor: "tester", Causation: 3, Digest: "d"}, c))
	}
	for _, sc := range allScenarios() {
		if p := payload(f, Meta{ID: runA}, sc.when); len(p) < 2000 {
			f.Add(p)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, c, err := Decode(data)
		if err != nil {
			if fault.CodeOf(err) != fault.Invalid {
				t.Fatalf("%v is not Invalid", err)
			}
			return
		}
		first, err := Encode(m, c)
		if fault.CodeOf(err) == fault.TooLarge {
			return
		}
		if err != nil {
			t.Fatalf("decoded, and not encoded: %v", err)
		}
		m2, c2, err := Decode(first)
		if err != nil {
			t.Fatalf("not decoded again: %v: %s", err, first)
		}
		if second, err := Encode(m2, c2); err != nil || !bytes.Equal(first, second) {
			t.Fatalf("%s became %s, %v", first, second, err)
		}
		for _, sc := range allScenarios() {
			if sc.when.Name() != c.Name() {
				continue
			}
			sc.when = c
			evs, state, err := sc.run(t)
			if err != nil && fault.CodeOf(err) == fault.Internal {
				t.Fatalf("a refusal without a code: %v", err)
			}
			if _, err := json.Marshal(state); err != nil {
				t.Fatal(err)
			}
			for _, e := range evs {
				stored, err := events.Encode(e)
				if err != nil {
					t.Fatal(err)
				}
				if i := slices.Index(stored, 0); i >= 0 {
					t.Fatalf("NUL in %s", stored)
				}
			}
		}
	})
}
