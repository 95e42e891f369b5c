package worker

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// A worker that pauses since its control plane was away asks at once when the webhook is called, and only then.
func TestWebhook(t *testing.T) {
	p := newPlane(t)
	p.publish("quick", "1.0", backend("quick", "1.0", "return wheel(folder)"))
	asked := 0
	p.down = func(r *http.Request) bool {
		if r.URL.Path == "/worker/lease" {
			asked++
			return true
		}
		return false
	}
	w, _ := p.start(func(c *Config) { c.Slots = 1 })
	p.eventually(30*time.Second, "long pauses", func() bool { return asked >= 6 }) // the next is 5 s away
	webhook := httptest.NewServer(w.Webhook())
	defer webhook.Close()
	call := func(want int, method, token, body string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, webhook.URL+"/wake", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			r.Header.Set("X-Worker-Token", token)
		}
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != want {
			t.Errorf("%s %q %.40s: %d, want %d", method, token, body, answer.StatusCode, want)
		}
	}
	const drain = `{"action":"drain"}`
	p.mu.Lock()
	p.down = nil
	p.mu.Unlock()
	p.add(w, "quick", "1.0")
	call(405, "GET", testToken, "")
	call(401, "POST", "", drain)
	call(401, "POST", "wrong", drain)
	call(400, "POST", testToken, `{"action":"stop"}`)
	call(400, "POST", testToken, strings.Repeat("{", 10_000))
	p.mu.Lock()
	left := len(p.queue)
	p.mu.Unlock()
	if left != 1 {
		t.Error("it asked without a call that counts")
	}
	began := time.Now()
	call(204, "POST", testToken, drain)
	p.eventually(5*time.Second, "the job to be leased", func() bool { return len(p.queue) == 0 })
	if took := time.Since(began); took > 1500*time.Millisecond {
		t.Errorf("it asked after %v", took)
	}
	p.ended("quick", 60*time.Second)
}
