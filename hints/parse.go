package hints

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// Limits of an import.
const (
	mostData    = 5_000_000 // bytes
	mostEntries = 20_000
	mostMarks   = 700_000 // characters of YAML that may begin a node: a node takes some hundred bytes
	mostDepth   = 20
)

// Entry is one hint of an import. Err says everything that is wrong with it: it is fault.Invalid, or fault.Conflict where the only trouble
// is that an earlier entry says the same.
type Entry struct {
	Index int // from 0
	Hint  events.Hint
	Err   error
}

// Parse reads a list of hints from YAML or JSON: a list, a mapping with such a list under hints, or one under errors whose entries have a
// pattern and packages. A bad entry spoils no other. It fails only when the whole cannot be read or is over a limit.
func Parse(data []byte) ([]Entry, error) {
	if len(data) > mostData {
		return nil, fault.New(fault.TooLarge, "the import is larger than %d bytes: send it in parts", mostData)
	}
	list, packages, err := top(data)
	if err != nil {
		return nil, err
	}
	if len(list) > mostEntries {
		return nil, fault.New(fault.TooLarge, "the import has more than %d entries: send it in parts", mostEntries)
	}
	entries := make([]Entry, len(list))
	ids, patterns := map[string]int{}, map[string]int{}
	for i, item := range list {
		h, err := entry(item, packages)
		entries[i] = Entry{i, h, err}
		if err != nil {
			continue
		}
		same := h.Twin()
		if earlier, ok := ids[h.ID]; ok {
			entries[i].Err = duplicate("/id", "is the id of entry %d as well", earlier)
		} else if earlier, ok := patterns[same]; ok {
			entries[i].Err = duplicate("/pattern", "is that of entry %d as well, with the same limits", earlier)
		} else {
			ids[h.ID], patterns[same] = i, i
		}
	}
	return entries, nil
}

// entry reads one hint and says everything that is wrong with it: where it cannot be read, Validate adds nothing.
func entry(item any, packages bool) (h events.Hint, err error) {
	r := reader{packages: packages}
	m := r.mapping("", item)
	if m == nil {
		return h, r.k.Err()
	}
	h = r.hint(m)
	unread, _ := errors.AsType[*fault.Error](r.k.Err())
	invalid, _ := errors.AsType[*fault.Error](Validate(h))
	if invalid != nil {
		for _, f := range invalid.Fields {
			known := unread != nil && slices.ContainsFunc(unread.Fields, func(u fault.Field) bool {
				return u.Pointer != "" && (strings.HasPrefix(u.Pointer, f.Pointer) || strings.HasPrefix(f.Pointer, u.Pointer))
			})
			r.k.Check(known, f.Pointer, "%s", f.Detail)
		}
	}
	return h, r.k.Err()
}

func duplicate(at, format string, earlier int) error {
	detail := fmt.Sprintf(format, earlier)
	return &fault.Error{Code: fault.Conflict, Message: at + ": " + detail, Fields: []fault.Field{{Pointer: at, Detail: detail}}}
}

// top returns the entries, and whether they are those of the errors form.
func top(data []byte) (list []any, packages bool, err error) {
	tree, err := tree(data)
	if err != nil {
		return nil, false, err
	}
	switch t := tree.(type) {
	case []any:
		return t, false, nil
	case map[string]any:
		for _, name := range []string{"hints", "errors"} {
			if list, ok := t[name].([]any); ok && len(t) == 1 {
				return list, name == "errors", nil
			}
		}
	}
	return nil, false, fault.New(fault.Invalid, "the import is neither a list of hints nor a mapping with one list, hints or errors")
}

// tree decodes JSON, or YAML if it is none, into nil, bool, string, json.Number, []any and map[string]any.
func tree(data []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var v any
	if d.Decode(&v) == nil {
		if _, err := d.Token(); err == io.EOF {
			return v, nil
		}
	}
	marks := 0
	for _, mark := range []string{"\n", ",", ":", "?", "[", "{", "- "} {
		marks += bytes.Count(data, []byte(mark))
	}
	if marks > mostMarks {
		return nil, fault.New(fault.TooLarge, "the import has more than %d lines and items: send it in parts, or as JSON", mostMarks)
	}
	var n, more yaml.Node
	documents := yaml.NewDecoder(bytes.NewReader(data))
	if err := documents.Decode(&n); err == io.EOF {
		return nil, nil
	} else if err != nil {
		return nil, fault.New(fault.Invalid, "the import is neither JSON nor YAML: %s", quoted.ReplaceAllString(err.Error(), "…"))
	}
	if err := documents.Decode(&more); err != io.EOF {
		return nil, fault.New(fault.Invalid, "the import goes on after its first document")
	}
	return value(n.Content[0], 0)
}

// quoted is what an error of the YAML library repeats of the data.
var quoted = regexp.MustCompile(`(?s)'.*'`)

func value(n *yaml.Node, depth int) (any, error) {
	if depth > mostDepth {
		return nil, fault.New(fault.Invalid, "line %d: more than %d levels", n.Line, mostDepth)
	}
	switch n.Kind {
	case yaml.SequenceNode:
		list := make([]any, 0, len(n.Content))
		for _, c := range n.Content {
			v, err := value(c, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		return list, nil
	case yaml.MappingNode:
		m := make(map[string]any, len(n.Content)/2)
		for i := 0; i < len(n.Content); i += 2 {
			key := n.Content[i]
			if _, twice := m[key.Value]; key.Kind != yaml.ScalarNode || twice {
				return nil, fault.New(fault.Invalid, "line %d: a key that is no text, or is there twice", key.Line)
			}
			v, err := value(n.Content[i+1], depth+1)
			if err != nil {
				return nil, err
			}
			m[key.Value] = v
		}
		return m, nil
	case yaml.ScalarNode:
		switch n.ShortTag() {
		case "!!null":
			return nil, nil
		case "!!bool":
			return n.Value == "true", nil
		case "!!int", "!!float":
			return json.Number(n.Value), nil
		}
		return n.Value, nil
	}
	return nil, fault.New(fault.Invalid, "line %d: aliases are not taken: write it out", n.Line)
}

// reader turns decoded values into a hint and notes what does not fit.
type reader struct {
	k        fault.Checks
	packages bool // the errors form
}

func (r *reader) hint(m map[string]any) (h events.Hint) {
	for _, name := range slices.Sorted(maps.Keys(m)) {
		v, at := m[name], "/"+name
		switch {
		case name == "id":
			h.ID = r.text(at, v)
		case name == "pattern":
			h.Pattern = r.text(at, v)
		case name == "note":
			h.Note = r.text(at, v)
		case name == "severity":
			h.Severity = r.text(at, v)
		case name == "tags":
			h.Tags = r.texts(at, v)
		case name == "examples":
			h.Examples = r.texts(at, v)
		case name == "confidence":
			h.Confidence = r.confidence(at, v)
		case name == "recipes" || name == "packages" && r.packages:
			h.Recipes = append(h.Recipes, r.recipes(at, v)...)
		case name == "applies_to":
			h.AppliesTo = r.appliesTo(at, v)
		default:
			r.unknown("", name)
		}
	}
	if _, given := m["severity"]; !given {
		h.Severity = "error"
	}
	if _, given := m["confidence"]; !given {
		h.Confidence = confidences["medium"]
	}
	if _, given := m["id"]; !given {
		sum := sha256.Sum256([]byte(h.Pattern))
		h.ID = "pattern-" + hex.EncodeToString(sum[:8])
	}
	return h
}

var confidences = map[string]float64{"low": 0.3, "medium": 0.6, "high": 0.9}

func (r *reader) confidence(at string, v any) float64 {
	switch v := v.(type) {
	case json.Number:
		if f, err := strconv.ParseFloat(string(v), 64); err == nil && !math.IsNaN(f) {
			return f
		}
	case string:
		if f, ok := confidences[v]; ok {
			return f
		}
	}
	r.k.Check(false, at, "is neither low, medium, high nor a number from 0 to 1")
	return 0
}

// recipes reads a list of recipes, or a mapping from kinds to items.
func (r *reader) recipes(at string, v any) (list []events.Recipe) {
	if m, ok := v.(map[string]any); ok {
		for _, kind := range slices.Sorted(maps.Keys(m)) {
			if !slices.Contains(RecipeKinds, kind) {
				r.unknown(at, kind)
				continue
			}
			list = append(list, events.Recipe{Kind: kind, Items: r.texts(at+"/"+kind, m[kind])})
		}
		return list
	}
	for i, v := range r.list(at, v) {
		at := fmt.Sprintf("%s/%d", at, i)
		var one events.Recipe
		m := r.mapping(at, v)
		for _, name := range slices.Sorted(maps.Keys(m)) {
			switch v := m[name]; name {
			case "kind":
				one.Kind = r.text(at+"/kind", v)
			case "items":
				one.Items = r.texts(at+"/items", v)
			default:
				r.unknown(at, name)
			}
		}
		list = append(list, one)
	}
	return list
}

func (r *reader) appliesTo(at string, v any) (a events.AppliesTo) {
	m := r.mapping(at, v)
	for _, name := range slices.Sorted(maps.Keys(m)) {
		switch list := r.texts(at+"/"+name, m[name]); name {
		case "platforms":
			a.Platforms = list
		case "arch":
			a.Arch = list
		case "python_versions":
			a.PythonVersions = list
		case "build_backends":
			a.BuildBackends = list
		case "packages":
			a.Packages = list
		default:
			r.unknown(at, name)
		}
	}
	return a
}

var fieldForm = regexp.MustCompile(`^[A-Za-z0-9_-]{1,50}$`)

// unknown notes a field that nobody knows. What is no name is not echoed.
func (r *reader) unknown(at, name string) {
	if fieldForm.MatchString(name) {
		at += "/" + name
	}
	r.k.Check(false, at, "is not a field that is known here")
}

func (r *reader) mapping(at string, v any) map[string]any {
	m, ok := v.(map[string]any)
	r.k.Check(ok, at, "is not a mapping")
	return m
}

func (r *reader) list(at string, v any) []any {
	l, ok := v.([]any)
	r.k.Check(ok, at, "is not a list")
	return l
}

// text reads a string. A number is taken as it is written: 3.10 is a version.
func (r *reader) text(at string, v any) string {
	switch v := v.(type) {
	case string:
		return v
	case json.Number:
		return string(v)
	}
	r.k.Check(false, at, "is not text")
	return ""
}

// texts reads a list of strings, or one string.
func (r *reader) texts(at string, v any) (list []string) {
	if _, ok := v.([]any); !ok {
		return []string{r.text(at, v)}
	}
	for i, v := range r.list(at, v) {
		list = append(list, r.text(fmt.Sprintf("%s/%d", at, i), v))
	}
	return list
}
