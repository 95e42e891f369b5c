// Package index is the package index that pip and uv read, over the artifacts read model and the wheel store.
package index

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html/template"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	version "github.com/aquasecurity/go-pep440-version"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
	"github.com/wheelrefinery/refinery/internal/wheelstore"
	"github.com/wheelrefinery/refinery/projections"
)

// New makes the handler of /simple/ (PEP 503 and 691) and of the wheels and their metadata under /artifacts/ (PEP 658).
func New(q projections.Querier, wheels wheelstore.Store) http.Handler {
	x := &index{q, wheels}
	mux := http.NewServeMux()
	for pattern, h := range map[string]func(http.ResponseWriter, *http.Request) error{
		"GET /simple/{$}":           x.projects,
		"GET /simple/{project}/{$}": x.project,
		"GET /artifacts/{filename}": x.file,
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := h(w, r); err != nil {
				api.WriteProblem(w, r, err)
			}
		})
	}
	return mux
}

type index struct {
	q      projections.Querier
	wheels wheelstore.Store
}

// The media types of PEP 691.
const (
	typeJSON = "application/vnd.pypi.simple.v1+json"
	typeHTML = "application/vnd.pypi.simple.v1+html"
	typeOld  = "text/html"
)

const apiVersion = "1.1" // PEP 700: versions and sizes

type meta struct {
	Version string `json:"api-version"`
}

type projectList struct {
	Meta     meta   `json:"meta"`
	Projects []name `json:"projects"`
}

type name struct {
	Name string `json:"name"`
}

type projectPage struct {
	Meta     meta     `json:"meta"`
	Name     string   `json:"name"`
	Versions []string `json:"versions"`
	Files    []file   `json:"files"`
}

type file struct {
	Filename       string            `json:"filename"`
	URL            string            `json:"url"`
	Hashes         map[string]string `json:"hashes"`
	Size           int64             `json:"size"`
	UploadTime     string            `json:"upload-time"`
	RequiresPython string            `json:"requires-python,omitempty"`
	CoreMetadata   map[string]string `json:"core-metadata"` // PEP 714
	Yanked         any               `json:"yanked"`        // false; true, or the reason where there is one (PEP 592)
	YankReason     string            `json:"-"`
}

var listHTML = template.Must(template.New("list").Parse(`<!DOCTYPE html>
<html><head><meta name="pypi:repository-version" content="` + apiVersion + `"><title>Simple index</title></head><body>
{{range .Projects}}<a href="{{.Name}}/">{{.Name}}</a><br>
{{end}}</body></html>
`))

var pageHTML = template.Must(template.New("page").Parse(`<!DOCTYPE html>
<html><head><meta name="pypi:repository-version" content="` + apiVersion + `"><title>Links for {{.Name}}</title></head><body>
<h1>Links for {{.Name}}</h1>
{{range .Files}}<a href="{{.URL}}#sha256={{.Hashes.sha256}}"{{with .RequiresPython}} data-requires-python="{{.}}"{{end -}}
{{with .CoreMetadata.sha256}} data-core-metadata="sha256={{.}}" data-dist-info-metadata="sha256={{.}}"{{end -}}
{{if .Yanked}} data-yanked="{{.YankReason}}"{{end}}>{{.Filename}}</a><br>
{{end}}</body></html>
`))

func (x *index) projects(w http.ResponseWriter, r *http.Request) error {
	rows, err := projections.Query[projections.ProjectRow](r.Context(), x.q, "from artifacts.projects order by project")
	if err != nil {
		return err
	}
	list := projectList{meta{apiVersion}, make([]name, len(rows))}
	for i, p := range rows {
		list.Projects[i].Name = p.Project
	}
	return answer(w, r, listHTML, list)
}

func (x *index) project(w http.ResponseWriter, r *http.Request) error {
	project := r.PathValue("project")
	if normal := events.NormalizeName(project); normal != project {
		w.Header().Set("Location", "../"+url.PathEscape(normal)+"/")
		w.WriteHeader(http.StatusMovedPermanently) // PEP 503
		return nil
	}
	rows, err := projections.Query[projections.ArtifactRow](r.Context(), x.q, "from artifacts.files where project = $1 order by position", project)
	if err != nil {
		return err
	}
	if len(rows) == 0 {
		return fault.New(fault.NotFound, "The index has no wheel of this project.")
	}
	page := projectPage{Meta: meta{apiVersion}, Name: project, Files: make([]file, len(rows))}
	for i, a := range rows {
		page.Files[i] = file{
			Filename: a.Filename, URL: "../../artifacts/" + url.PathEscape(a.Filename), Hashes: map[string]string{"sha256": a.SHA256},
			Size: a.Size, UploadTime: a.UploadedAt.UTC().Format(time.RFC3339Nano), RequiresPython: a.RequiresPython,
			CoreMetadata: map[string]string{"sha256": a.MetadataSHA256}, Yanked: a.Yanked, YankReason: a.YankReason,
		}
		if a.Yanked && a.YankReason != "" {
			page.Files[i].Yanked = a.YankReason
		}
		if !slices.Contains(page.Versions, a.Version) {
			page.Versions = append(page.Versions, a.Version)
		}
	}
	sortVersions(page.Versions)
	return answer(w, r, pageHTML, page)
}

// sortVersions sorts as PEP 440 says; what is not a version, which the store does not take, comes first.
func sortVersions(all []string) {
	parsed := map[string]version.Version{}
	for _, v := range all {
		if p, err := version.Parse(v); err == nil {
			parsed[v] = p
		}
	}
	slices.SortFunc(all, func(a, b string) int {
		pa, okA := parsed[a]
		pb, okB := parsed[b]
		if okA && okB {
			return pa.Compare(pb)
		}
		return cmp.Or(btoi(okA)-btoi(okB), strings.Compare(a, b))
	})
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// answer writes page in the form that the client accepts.
func answer(w http.ResponseWriter, r *http.Request, html *template.Template, page any) error {
	w.Header().Set("Vary", "Accept")
	kind := negotiate(r.Header.Values("Accept"))
	var body bytes.Buffer
	switch kind {
	case "":
		http.Error(w, "this index answers "+typeJSON+", "+typeHTML+" and "+typeOld, http.StatusNotAcceptable)
		return nil
	case typeJSON:
		if err := json.NewEncoder(&body).Encode(page); err != nil {
			return fmt.Errorf("index: %w", err)
		}
	default:
		if err := html.Execute(&body, page); err != nil {
			return fmt.Errorf("index: %w", err)
		}
	}
	sum := sha256.Sum256(body.Bytes())
	h := w.Header()
	h.Set("ETag", `W/"`+hex.EncodeToString(sum[:12])+`"`) // weak: a compressed page has the same
	h.Set("Cache-Control", "no-cache")                    // a wheel that was just built must be found
	h.Set("Content-Type", kind)
	if kind == typeOld {
		h.Set("Content-Type", kind+"; charset=utf-8")
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body.Bytes()))
	return nil
}

// negotiate chooses by Accept (RFC 9110, 12.5.1): the acceptable type of the highest weight, HTML where all are alike; "" for none.
func negotiate(accept []string) string {
	if len(accept) == 0 {
		return typeOld
	}
	weights := map[string]float64{}
	for part := range strings.SplitSeq(strings.Join(accept, ","), ",") {
		kind, parameters, err := mime.ParseMediaType(part)
		if err != nil {
			continue
		}
		weight := 1.0
		if q, ok := parameters["q"]; ok {
			if weight, err = strconv.ParseFloat(q, 64); err != nil {
				continue
			}
		}
		weights[kind] = weight
	}
	best, most := "", 0.0
	for _, kind := range []string{typeOld, typeJSON, typeHTML} {
		major, _, _ := strings.Cut(kind, "/")
		for _, pattern := range []string{kind, major + "/*", "*/*"} { // the most specific counts
			if weight, ok := weights[pattern]; ok {
				if weight > most {
					best, most = kind, weight
				}
				break
			}
		}
	}
	return best
}

// file serves a wheel, or its METADATA under the wheel's name and ".metadata".
func (x *index) file(w http.ResponseWriter, r *http.Request) error {
	filename, isMetadata := strings.CutSuffix(r.PathValue("filename"), ".metadata")
	a, err := x.artifact(r.Context(), filename)
	if err != nil {
		return err
	}
	sum := a.SHA256
	if isMetadata {
		sum = a.MetadataSHA256
	}
	content, err := x.wheels.Open(sum)
	if err != nil {
		return err
	}
	defer content.Close()
	h := w.Header()
	h.Set("ETag", `"`+sum+`"`)
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Cache-Control", "no-cache") // a later attempt may replace it
	http.ServeContent(w, r, "", a.UploadedAt, content)
	return nil
}

func (x *index) artifact(ctx context.Context, filename string) (projections.ArtifactRow, error) {
	rows, err := projections.Query[projections.ArtifactRow](ctx, x.q, "from artifacts.files where filename = $1", filename)
	if err != nil {
		return projections.ArtifactRow{}, err
	}
	if len(rows) == 0 {
		return projections.ArtifactRow{}, fault.New(fault.NotFound, "The index has no such file.")
	}
	return rows[0], nil
}
