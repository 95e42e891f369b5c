package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wheelrefinery/refinery/api"
)

// hook is a webhook that answers what a test says, and remembers what it was sent.
type hook struct {
	*httptest.Server
	mu     sync.Mutex
	status int
	calls  []string
}

func newHook(t *testing.T) *hook {
	h := &hook{status: http.StatusNoContent}
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		h.mu.Lock()
		defer h.mu.Unlock()
		h.calls = append(h.calls, r.Method+" "+r.URL.Path+" "+r.Header.Get("X-Worker-Token")+" "+string(body))
		if h.status == http.StatusFound {
			w.Header().Set("Location", "/elsewhere")
		}
		w.WriteHeader(h.status)
	}))
	t.Cleanup(h.Close)
	return h
}

func (h *hook) answer(status int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.status, h.calls = status, nil
}

func (h *hook) called() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.calls
}

func TestTriggerWebhook(t *testing.T) {
	h := newHook(t)
	c := startControl(t, func(s *controlSettings) { s.WorkerWebhookURL, s.WorkerToken = h.URL+"/wake", "secret-4711" })
	token := []string{"X-Worker-Token", "secret-4711"}
	c.call(401, "POST", "/worker/trigger", nil, nil)
	var a api.TriggerAnswer
	c.call(200, "POST", "/worker/trigger", nil, &a, token...)
	if a.How != api.Webhook || a.Status != 204 || a.Attempts != 1 {
		t.Errorf("%+v", a)
	}
	if got := h.called(); len(got) != 1 || got[0] != `POST /wake secret-4711 {"action":"drain"}` {
		t.Errorf("%q", got)
	}

	// A failure is an error, is called again, and the log says how it went; no secret is in it.
	for _, status := range []int{500, 302} {
		h.answer(status)
		var p api.Problem
		c.call(502, "POST", "/worker/trigger", nil, &p, token...)
		if !strings.Contains(p.Detail, fmt.Sprint("answered ", status)) || strings.Contains(p.Detail, h.URL) {
			t.Errorf("%+v", p)
		}
	}
	if got := h.called(); len(got) != 1 || !strings.HasPrefix(got[0], "POST /wake") {
		t.Errorf("a redirect was followed: %q", got)
	}
	h.answer(200)
	eventually(t, 15*time.Second, func() error {
		if n := len(h.called()); n < 2 { // one again for each that failed
			return fmt.Errorf("called %d times", n)
		}
		return nil
	})
	var types []string
	var text string
	eventually(t, 10*time.Second, func() error {
		err := c.pool.QueryRow(t.Context(), `select array_agg(type order by stream, position), string_agg(data::text, '') from events where stream like 'trigger/%'`).Scan(&types, &text)
		if err != nil || len(types) != 8 {
			return fmt.Errorf("%v %v", types, err)
		}
		return nil
	})
	count := map[string]int{}
	for _, name := range types {
		count[name]++
	}
	if count["trigger.requested.v1"] != 3 || count["trigger.failed.v1"] != 2 || count["trigger.succeeded.v1"] != 3 {
		t.Errorf("%v", count)
	}
	if strings.Contains(text, "secret") || strings.Contains(text, "127.0.0.1") {
		t.Errorf("the log holds a secret or the address: %s", text)
	}
	var config api.Config
	c.call(200, "GET", "/config", nil, &config)
	if data, _ := json.Marshal(config); strings.Contains(string(data), "secret-4711") {
		t.Errorf("%s", data)
	}
}

// Nobody at the address; and an address that would be where clouds keep credentials.
func TestTriggerRefused(t *testing.T) {
	for address, says := range map[string]string{
		"http://" + freeAddr(t):      "refuses the connection",
		"http://169.254.169.254/x":   "link-local",
		"http://[fe80::1]/":          "link-local",
		"http://name.invalid./path/": "does not resolve",
	} {
		c := startControl(t, func(s *controlSettings) { s.WorkerWebhookURL = address })
		var p api.Problem
		c.call(502, "POST", "/worker/trigger", nil, &p)
		if !strings.Contains(p.Detail, says) {
			t.Errorf("%s: %+v", address, p)
		}
	}
}

// Without a webhook, those who wait for a job here look again, and are counted.
func TestTriggerLocal(t *testing.T) {
	c := startControl(t)
	var a api.TriggerAnswer
	if c.call(200, "POST", "/worker/trigger", nil, &a); a.How != api.Local || a.Woken != 0 {
		t.Errorf("%+v", a)
	}
	var wg sync.WaitGroup
	for n := range 3 {
		wg.Go(func() {
			c.call(204, "POST", "/worker/lease", api.LeaseRequest{
				Worker: fmt.Sprintf("w%d", n), Slots: 1, PythonTag: "cp311", PlatformTag: "linux_x86_64", PythonVersion: "3.11.7", WaitSeconds: 5,
			}, nil)
		})
	}
	eventually(t, 4*time.Second, func() error {
		if c.call(200, "POST", "/worker/trigger", nil, &a); a.Woken != 3 {
			return fmt.Errorf("woke %d", a.Woken)
		}
		return nil
	})
	wg.Wait()
}
