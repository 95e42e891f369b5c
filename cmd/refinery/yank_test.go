package main

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/events"
)

// page reads the index's page of a project.
func (c *control) page(project, accept string) string {
	c.Helper()
	r, err := http.NewRequestWithContext(c.Context(), http.MethodGet, c.url()+"/simple/"+project+"/", nil)
	if err != nil {
		c.Fatal(err)
	}
	r.Header.Set("Accept", accept)
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		c.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		c.Fatal(answer.StatusCode, err)
	}
	return string(body)
}

// A yank shows in the list, in both forms of the index (PEP 592), and can be taken back.
func TestYank(t *testing.T) {
	c := startControl(t)
	const file = "/artifacts/demo-1.0-py3-none-any.whl/yank"
	const asJSON, asHTML = "application/vnd.pypi.simple.v1+json", "text/html"
	c.call(404, "POST", file, nil, nil)
	c.append("demo-1.0-py3-none-any.whl", 0, published("demo"))
	has := func(inJSON, inHTML, inList string) {
		t.Helper()
		if got := c.page("demo", asJSON); !strings.Contains(got, inJSON) {
			t.Errorf("JSON lacks %s: %s", inJSON, got)
		}
		html := c.page("demo", asHTML)
		if inHTML == "" && strings.Contains(html, "data-yanked") || !strings.Contains(html, inHTML) {
			t.Errorf("HTML lacks %s: %s", inHTML, html)
		}
		if got := c.artifacts(); len(got) != 1 || got[0] != inList {
			t.Errorf("list: %q", got)
		}
	}
	has(`"yanked":false`, "", "demo false ")
	var a api.YankAnswer
	c.call(200, "POST", file, nil, &a)
	if !a.Yanked || a.YankReason != "" {
		t.Errorf("%+v", a)
	}
	has(`"yanked":true`, `data-yanked=""`, "demo true ")
	const reason = `"><script>wrong</script>`
	c.call(200, "POST", file, api.YankRequest{Reason: reason}, &a)
	if a.YankReason != reason {
		t.Errorf("%+v", a)
	}
	has(`"yanked":"\"\u003e\u003cscript\u003ewrong`, `data-yanked="&#34;&gt;&lt;script&gt;wrong`, "demo true "+reason)
	no := false
	c.call(422, "POST", file, api.YankRequest{Yanked: &no, Reason: "x"}, nil)
	c.call(422, "POST", file, api.YankRequest{Reason: "two\nlines"}, nil)
	a = api.YankAnswer{}
	c.call(200, "POST", file, api.YankRequest{Yanked: &no}, &a)
	if a.Yanked {
		t.Errorf("%+v", a)
	}
	has(`"yanked":false`, "", "demo false ")
}

// Whoever asks for a build whose wheel is there gets that one, but not where it is yanked; a newer wheel counts, not an older.
func TestEnqueueOfWhatIsYanked(t *testing.T) {
	c := startControl(t)
	first, second := published("demo"), published("demo")
	second.Filename, second.Attempt = "demo-1.0-cp311-none-any.whl", 2
	made := func(p events.ArtifactPublished) []events.Event {
		return []events.Event{
			events.BuildQueued{},
			events.BuildLeased{Attempt: p.Attempt, Worker: "w"},
			events.BuildStarted{Attempt: p.Attempt},
			events.BuildSucceeded{Attempt: p.Attempt, Worker: "w", Wheel: events.File{Filename: p.Filename, SHA256: p.SHA256, Size: p.Size}},
		}
	}
	asked := func(status int, want api.BuildStatus, headers ...string) {
		t.Helper()
		var a api.EnqueueAnswer
		c.call(status, "POST", "/queue/enqueue", api.EnqueueRequest{
			Package: "demo", Version: "1.0", PythonTag: first.Build.PythonTag, PlatformTag: first.Build.PlatformTag,
		}, &a, headers...)
		if a.Status != want {
			t.Errorf("%+v, want %s", a, want)
		}
	}
	c.append(first.Filename, 0, first)
	c.appendTo(first.Build.Stream(), 0, made(first)...)
	asked(200, "reused", "Idempotency-Key", "k")
	c.call(200, "POST", "/artifacts/"+first.Filename+"/yank", nil, nil)
	asked(200, "reused", "Idempotency-Key", "k") // the same request
	asked(201, "queued")
	asked(200, "queued")
	c.appendTo(first.Build.Stream(), 6, made(second)[1:]...)
	c.append(second.Filename, 0, second)
	asked(200, "reused")
	no := false
	c.call(200, "POST", "/artifacts/"+second.Filename+"/yank", nil, nil)
	c.call(200, "POST", "/artifacts/"+first.Filename+"/yank", api.YankRequest{Yanked: &no}, nil)
	asked(201, "queued")
}
