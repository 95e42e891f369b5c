package api

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
)

//go:embed docs.html
var docsHTML string

// docs is the page of /docs: openapi.yaml to read and to try, made once.
type docs struct {
	page   []byte
	policy string
	tag    string
}

// What the page shows.
type (
	docsPage struct {
		Title, Version string
		About          []string
		Groups         []docsGroup
		Schemas        []docsSchema
	}
	docsGroup struct {
		Name, About string
		Operations  []docsOperation
	}
	docsOperation struct {
		ID, Method, Path, Summary, Scope string
		About                            []string
		Parameters                       []docsField
		BodyTypes                        []string
		Body                             *docsField
		Example                          string
		Answers                          []docsAnswer
		Streams                          bool
	}
	docsAnswer struct{ Status, About, Type, Ref string }
	docsSchema struct {
		docsField
		Fields  []docsField
		Example string
	}
	docsField struct {
		Name, In, Type, Ref, About, Limits string
		Required                           bool
	}
)

func newDocs(doc *openapi3.T) (*docs, error) {
	p := docsPage{Title: doc.Info.Title, Version: doc.Info.Version, About: paragraphs(doc.Info.Description)}
	groups := map[string][]docsOperation{}
	for _, path := range slices.Sorted(maps.Keys(doc.Paths.Map())) {
		item := doc.Paths.Value(path)
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch} {
			op := item.GetOperation(method)
			if op == nil {
				continue
			}
			o := docsOperation{ID: op.OperationID, Method: method, Path: path, Summary: op.Summary, About: paragraphs(op.Description)}
			scope, err := scopeOf(method, op.Extensions)
			if err != nil {
				return nil, err
			}
			o.Scope = cmp.Or(string(scope), "none")
			o.Streams, _ = op.Extensions["x-stream"].(bool)
			for _, ref := range slices.Concat(item.Parameters, op.Parameters) {
				f := field(ref.Value.Name, ref.Value.Schema)
				f.In, f.Required, f.About = ref.Value.In, ref.Value.Required, cmp.Or(ref.Value.Description, f.About)
				o.Parameters = append(o.Parameters, f)
			}
			if op.RequestBody != nil {
				o.body(op.RequestBody.Value)
			}
			for _, status := range slices.Sorted(maps.Keys(op.Responses.Map())) {
				r := op.Responses.Value(status).Value
				a := docsAnswer{Status: status}
				if r.Description != nil {
					a.About = *r.Description
				}
				for media, c := range r.Content {
					a.Type = media
					if c.Schema != nil {
						a.Ref = refName(c.Schema.Ref)
					}
				}
				o.Answers = append(o.Answers, a)
			}
			groups[op.Tags[0]] = append(groups[op.Tags[0]], o)
		}
	}
	for _, t := range doc.Tags {
		p.Groups = append(p.Groups, docsGroup{t.Name, t.Description, groups[t.Name]})
	}
	for _, name := range slices.Sorted(maps.Keys(doc.Components.Schemas)) {
		ref := doc.Components.Schemas[name]
		s := docsSchema{docsField: field(name, ref), Fields: fields(ref.Value), Example: shownExample(ref.Value.Example)}
		s.About = ref.Value.Description
		p.Schemas = append(p.Schemas, s)
	}
	t, err := template.New("docs").Funcs(template.FuncMap{"text": text}).Parse(docsHTML)
	if err != nil {
		return nil, fmt.Errorf("parse docs.html: %w", err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, p); err != nil {
		return nil, fmt.Errorf("make /docs: %w", err)
	}
	sum := sha256.Sum256(b.Bytes())
	return &docs{b.Bytes(), "default-src 'none'; connect-src 'self'; script-src " + source(b.String(), "script") + "; style-src " +
		source(b.String(), "style") + "; base-uri 'none'; form-action 'none'; frame-ancestors 'none'", fmt.Sprintf(`"%x"`, sum[:8])}, nil
}

// source names the element <tag> of a page by its hash, so that the page may run its own script and nothing else.
func source(page, tag string) string {
	_, rest, _ := strings.Cut(page, "<"+tag+">")
	text, _, _ := strings.Cut(rest, "</"+tag+">")
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

func (d *docs) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", d.policy)
	h.Set("Cache-Control", "no-cache")
	h.Set("ETag", d.tag)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(d.page))
}

func (o *docsOperation) body(b *openapi3.RequestBody) {
	o.BodyTypes = slices.Sorted(maps.Keys(b.Content))
	media := b.Content[o.BodyTypes[0]]
	f := field("body", media.Schema)
	f.Required = b.Required
	o.Body = &f
	o.Example = shownExample(example(media))
}

// example is what media shows, by itself or by its schema; nil: nothing.
func example(media *openapi3.MediaType) any {
	if media.Example == nil && media.Schema != nil {
		return media.Schema.Value.Example
	}
	return media.Example
}

// shownExample is an example as it is read and sent.
func shownExample(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	data, err := json.MarshalIndent(v, "", "  ")
	if v == nil || err != nil { // it was JSON or YAML, so it is JSON again
		return ""
	}
	return string(data)
}

var codeSpan = regexp.MustCompile("`([^`]+)`")

// text is a description with its code spans; the rest of Markdown is not used.
func text(s string) template.HTML {
	return template.HTML(codeSpan.ReplaceAllString(template.HTMLEscapeString(s), "<code>$1</code>"))
}

var blankLine = regexp.MustCompile(`\n\s*\n`)

func paragraphs(s string) []string {
	if s = strings.TrimSpace(s); s == "" {
		return nil
	}
	return blankLine.Split(s, -1)
}

func refName(ref string) string { return strings.TrimPrefix(ref, "#/components/schemas/") }

func field(name string, ref *openapi3.SchemaRef) docsField {
	f := docsField{Name: name}
	if ref == nil || ref.Value == nil {
		return f
	}
	s := ref.Value
	f.Ref, f.About = refName(ref.Ref), s.Description
	if s.Type != nil {
		f.Type = strings.Join(*s.Type, " or ")
	}
	if s.Type.Is("array") && s.Items != nil {
		item := field("", s.Items)
		f.Type, f.Ref = "array of "+item.Type, cmp.Or(f.Ref, item.Ref)
	}
	f.Limits = limits(s)
	return f
}

// limits is what s allows, in words.
func limits(s *openapi3.Schema) string {
	var l []string
	say := func(format string, args ...any) { l = append(l, fmt.Sprintf(format, args...)) }
	if len(s.Enum) > 0 {
		say("one of %v", s.Enum)
	}
	if s.Format != "" {
		say("%s", s.Format)
	}
	if s.Min != nil {
		say("at least %v", *s.Min)
	}
	if s.Max != nil {
		say("at most %v", *s.Max)
	}
	if s.MaxLength != nil {
		say("%d to %d characters", s.MinLength, *s.MaxLength)
	}
	if s.MaxItems != nil {
		say("at most %d items", *s.MaxItems)
	}
	if s.Pattern != "" {
		say("matches %s", s.Pattern)
	}
	if s.Default != nil {
		say("%v where it is absent", s.Default)
	}
	return strings.Join(l, "; ")
}

func fields(s *openapi3.Schema) []docsField {
	var all []docsField
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		f := field(name, s.Properties[name])
		f.Required = slices.Contains(s.Required, name)
		all = append(all, f)
	}
	return all
}
