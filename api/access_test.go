package api_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/api/apitest"
	"github.com/wheelrefinery/refinery/internal/access"
	"github.com/wheelrefinery/refinery/internal/pgtest"
)

const (
	workerToken = "s3cr3t&+ü"
	readToken   = "r3ad-s3cr3t"
)

// named makes a tokens file with a token for each scope, and returns the tokens by scope.
func named(t *testing.T) (path string, tokens map[access.Scope]string) {
	tokens = map[access.Scope]string{}
	var file strings.Builder
	for _, s := range access.Scopes {
		tokens[s] = access.NewToken()
		line, err := access.Line("some-"+string(s), []access.Scope{s}, tokens[s])
		if err != nil {
			t.Fatal(err)
		}
		file.WriteString(line + "\n")
	}
	path = filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(path, []byte(file.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path, tokens
}

func guard(t testing.TB, c access.Config) *access.Guard {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Sessions = pgtest.New(t)
	g, err := access.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// caller sends requests from an address of its own each time, so that wrong tokens do not count.
type caller struct {
	h http.Handler
	n int
}

func (c *caller) send(method, path string, with func(*http.Request)) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, nil)
	c.n++
	r.RemoteAddr = "10." + string(rune('0'+c.n/62500%10)) + "." + itoa(c.n/250%250) + "." + itoa(c.n%250) + ":1"
	if with != nil {
		with(r)
	}
	w := httptest.NewRecorder()
	c.h.ServeHTTP(w, r)
	return w
}

func itoa(n int) string { b, _ := json.Marshal(n); return string(b) }

func header(token string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set("X-Worker-Token", token) }
}

var filled = strings.NewReplacer("{name}", "a", "{version}", "1", "{python_tag}", "cp311", "{platform_tag}", "any",
	"{id}", "0192d3a4-0000-7000-8000-000000000000", "{filename}", "a-1-py3-none-any.whl", "{project}", "a")

// wanted is what an operation must need, by its path: what forgot its x-scope is found here.
func wanted(method, path string) access.Scope {
	switch {
	case slices.Contains([]string{"/health", "/ready", "/openapi.yaml", "/docs", "/session"}, path):
		return access.Open
	case method == http.MethodGet:
		return access.Read
	case regexp.MustCompile(`^/(worker/(lease|heartbeat|result|smoke/\{id\})$|plan$|manifest$|logs/|artifacts/\{filename\}$)`).MatchString(path):
		return access.Worker
	case regexp.MustCompile(`^/(hints|projections)`).MatchString(path):
		return access.Admin
	}
	return access.Write
}

// Every operation of the contract, with no token, a wrong one, one of too small a scope, and one that reaches, wherever it is sent; with
// reads open and not. No token is ever logged.
func TestEveryRouteNeedsItsScope(t *testing.T) {
	file, tokens := named(t)
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	for _, readsOpen := range []bool{true, false} {
		c := access.Config{Worker: workerToken, File: file}
		if !readsOpen {
			c.Read = readToken
		}
		g := guard(t, c)
		call := &caller{h: serve(t, api.Options{Guard: g, Logger: logger}, &server{})}
		who, err := g.Check(t.Context(), "10.0.0.1:1", []string{workerToken}, nil)
		if err != nil {
			t.Fatal(err)
		}
		session := func() string { // one each, since a DELETE ends it
			id, _, err := g.Begin(t.Context(), who)
			if err != nil {
				t.Fatal(err)
			}
			return id
		}
		seen := map[access.Scope]int{}
		for template, item := range load(t).Paths.Map() {
			path := filled.Replace(template)
			for method, op := range item.Operations() {
				if method != http.MethodGet && !slices.Contains(op.Tags, "write") && template != "/session" {
					t.Errorf("%s %s is not tagged write", method, template)
				}
				scope := wanted(method, template)
				seen[scope]++
				free := scope == access.Open || scope == access.Read && readsOpen
				expect := func(name string, want int, with func(*http.Request)) {
					w := call.send(method, path, with)
					got := w.Code
					if got != http.StatusUnauthorized && got != http.StatusForbidden {
						got = http.StatusOK // whatever it is, it was let in
					}
					if got != want {
						t.Errorf("%s %s (reads open: %t) with %s: %d, want %d", method, template, readsOpen, name, w.Code, want)
					}
					if got != http.StatusOK && w.Header().Get("WWW-Authenticate") == "" {
						t.Errorf("%s %s with %s: %d without WWW-Authenticate", method, template, name, w.Code)
					}
				}
				refused := http.StatusUnauthorized
				if free {
					refused = http.StatusOK
				}
				for name, with := range map[string]func(*http.Request){
					"none": nil, "wrong": header("wrong"), "empty": header(""),
					"wrong bearer":      func(r *http.Request) { r.Header.Set("Authorization", "Bearer wrong") },
					"wrong session":     func(r *http.Request) { r.AddCookie(&http.Cookie{Name: api.SessionCookie, Value: "wrong"}) },
					"token as a cookie": func(r *http.Request) { r.AddCookie(&http.Cookie{Name: api.SessionCookie, Value: tokens[access.Admin]}) },
					"wrong query":       func(r *http.Request) { r.URL.RawQuery = "token=wrong" },
					"session as token":  header(session()),
				} {
					expect(name, refused, with)
				}
				reads := http.StatusUnauthorized
				if free || method == http.MethodGet {
					reads = http.StatusOK
				}
				expect("a password", reads, func(r *http.Request) { r.SetBasicAuth("any", workerToken) })
				for name, with := range map[string]func(*http.Request){
					"the header": header(workerToken),
					"bearer":     func(r *http.Request) { r.Header.Set("Authorization", "bearer "+workerToken) },
					"query":      func(r *http.Request) { r.URL.RawQuery = "token=s3cr3t%26%2B%C3%BC" },
					"session":    func(r *http.Request) { r.AddCookie(&http.Cookie{Name: api.SessionCookie, Value: session()}) },
				} {
					expect(name, http.StatusOK, with)
				}
				for s, token := range tokens {
					reaches := free || s == scope || scope == access.Read || s == access.Admin && scope == access.Write
					want := http.StatusForbidden
					if reaches {
						want = http.StatusOK
					}
					expect("scope "+string(s), want, header(token))
				}
				if !readsOpen {
					want := http.StatusForbidden
					if free || scope == access.Read {
						want = http.StatusOK
					}
					expect("READ_TOKEN", want, header(readToken))
				}
			}
		}
		for s, least := range map[access.Scope]int{access.Open: 7, access.Read: 15, access.Write: 7, access.Worker: 7} {
			if seen[s] < least {
				t.Errorf("only %d operations of scope %q were tried", seen[s], s)
			}
		}
		for _, path := range []string{"/nothing", "/summary", "/simple/"} {
			for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "post", "BREW", "CONNECT", "TRACE"} {
				if w := call.send(method, path, nil); w.Code != 401 {
					t.Errorf("%s %s: %d", method, path, w.Code)
				}
			}
		}
		if w := call.send("GET", "/nothing", nil); w.Code != map[bool]int{true: 404, false: 401}[readsOpen] {
			t.Errorf("GET of an unknown path: %d", w.Code)
		}
	}
	said := log.String()
	for _, secret := range append([]string{"s3cr3t", readToken, "wrong"}, tokens[access.Read], tokens[access.Write], tokens[access.Worker], tokens[access.Admin]) {
		if strings.Contains(said, secret) {
			t.Errorf("the log holds a token")
		}
	}
	if !strings.Contains(said, "some-admin") {
		t.Error("the log does not name who sent a request")
	}
}

// A page's token becomes a cookie that is not the token, can do what the token can, and ends.
func TestSession(t *testing.T) {
	file, tokens := named(t)
	g := guard(t, access.Config{Worker: workerToken, Read: readToken, File: file})
	h := apitest.Check(t, serve(t, api.Options{Guard: g}, &server{}))
	send := func(method, path, body string, cookies []*http.Cookie, headers ...string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, path, strings.NewReader(body))
		if body != "" {
			r.Header.Set("Content-Type", "application/json")
		}
		for pair := range slices.Chunk(headers, 2) {
			r.Header.Set(pair[0], pair[1])
		}
		for _, c := range cookies {
			r.AddCookie(c)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w
	}
	begin := func(token string, headers ...string) (*httptest.ResponseRecorder, []*http.Cookie) {
		w := send("POST", "/session", `{"token":"`+token+`"}`, nil, headers...)
		return w, w.Result().Cookies()
	}
	if w, cookies := begin("wrong"); w.Code != 401 || len(cookies) > 0 {
		t.Errorf("a wrong token: %d, %v", w.Code, cookies)
	}
	for _, body := range []string{`{}`, `{"token":""}`, `{"token":"a","more":1}`, `[]`, `{"token":1}`} {
		if w := send("POST", "/session", body, nil); w.Code != 400 {
			t.Errorf("%s: %d", body, w.Code)
		}
	}
	w, cookies := begin(tokens[access.Write])
	if w.Code != 201 || len(cookies) != 1 || !strings.Contains(w.Body.String(), `"some-write"`) || w.Header().Get("Cache-Control") != "no-store" {
		t.Fatalf("%d %v %s", w.Code, cookies, w.Body)
	}
	c := cookies[0]
	if !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Secure || c.Path != "/" || len(c.Value) < 32 || strings.Contains(c.Value, tokens[access.Write]) {
		t.Errorf("the cookie is %v", c)
	}
	if _, secure := begin(tokens[access.Write], "X-Forwarded-Proto", "https"); !secure[0].Secure {
		t.Error("behind TLS the cookie is not Secure")
	}
	if w := send("GET", "/queue/stats", "", cookies); w.Code != 200 {
		t.Errorf("a read with the cookie: %d", w.Code)
	}
	if w := send("POST", "/queue/resume", "", cookies); w.Code != 200 {
		t.Errorf("a write with the cookie: %d", w.Code)
	}
	if w := send("POST", "/worker/lease", `{}`, cookies); w.Code != 403 {
		t.Errorf("what the token may not, with the cookie: %d", w.Code)
	}
	if w := send("POST", "/queue/resume", "", cookies, "Origin", "http://localhost:9999", "Sec-Fetch-Site", "same-site"); w.Code != 403 {
		t.Errorf("a write of another origin on the same site, to which the cookie goes: %d", w.Code)
	}
	if w := send("GET", "/session", "", cookies); w.Code != 200 || !strings.Contains(w.Body.String(), `["read","write"]`) || !strings.Contains(w.Body.String(), "expires_at") {
		t.Errorf("GET /session: %d %s", w.Code, w.Body)
	}
	if w := send("GET", "/session", "", nil); w.Code != 200 || !strings.Contains(w.Body.String(), `"scopes":[]`) {
		t.Errorf("GET /session of a stranger: %d %s", w.Code, w.Body)
	}
	w = send("DELETE", "/session", "", cookies)
	if gone := w.Result().Cookies(); w.Code != 204 || len(gone) != 1 || gone[0].MaxAge >= 0 || gone[0].Value != "" {
		t.Errorf("DELETE: %d %v", w.Code, gone)
	}
	if w := send("GET", "/queue/stats", "", cookies); w.Code != 401 {
		t.Errorf("the cookie after DELETE: %d", w.Code)
	}
	open := apitest.Check(t, serve(t, api.Options{}, &server{}))
	r := httptest.NewRequest("GET", "/session", nil)
	rec := httptest.NewRecorder()
	if open.ServeHTTP(rec, r); !strings.Contains(rec.Body.String(), `["read","write","worker","admin"]`) {
		t.Errorf("without tokens: %s", rec.Body)
	}
}

// Wrong tokens are not heard for ever; who was let in before goes on.
func TestGuessing(t *testing.T) {
	h := serve(t, api.Options{Guard: guard(t, access.Config{Worker: workerToken, Read: readToken})}, &server{})
	send := func(address, token string) *httptest.ResponseRecorder {
		r := httptest.NewRequest("POST", "/queue/resume", nil)
		r.RemoteAddr = address
		r.Header.Set("X-Worker-Token", token)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w
	}
	send("10.0.0.1:1", workerToken)
	for range 20 {
		if w := send("10.0.0.1:2", "guess"); w.Code != 401 {
			t.Fatalf("%d", w.Code)
		}
	}
	if w := send("10.0.0.1:3", "guess"); w.Code != 429 || w.Header().Get("Retry-After") == "" {
		t.Errorf("guess 21: %d %v", w.Code, w.Header())
	}
	if w := send("10.0.0.1:4", readToken); w.Code != 429 {
		t.Errorf("a right guess among too many: %d", w.Code)
	}
	if w := send("10.0.0.1:5", workerToken); w.Code != 200 {
		t.Errorf("a token that was known before: %d", w.Code)
	}
	if w := send("10.0.0.2:1", readToken); w.Code != 403 {
		t.Errorf("another address: %d", w.Code)
	}
}

// What a page of another origin can send without asking is refused, whatever type it gives its body.
func TestOtherOrigins(t *testing.T) {
	h := serve(t, api.Options{}, &server{})
	for _, kind := range []string{"application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain; application/json", ""} {
		for _, path := range []string{"/queue/enqueue", "/queue/resume", "/runs", "/session", "/simple/", "/nothing"} {
			for name, headers := range map[string][2]string{
				"origin": {"Origin", "https://evil.example"}, "null origin": {"Origin", "null"}, "another port": {"Origin", "http://example.com:9999"},
				"site": {"Sec-Fetch-Site", "cross-site"}, "same site": {"Sec-Fetch-Site", "same-site"},
			} {
				r := httptest.NewRequest("POST", path, strings.NewReader(enqueueFlask))
				r.Header.Set("Content-Type", kind)
				r.Header.Set(headers[0], headers[1])
				w := httptest.NewRecorder()
				if h.ServeHTTP(w, r); w.Code != 403 {
					t.Errorf("%s as %q, %s: %d", path, kind, name, w.Code)
				}
			}
		}
	}
	r := httptest.NewRequest("OPTIONS", "/queue/enqueue", nil)
	r.Header.Set("Origin", "https://evil.example")
	r.Header.Set("Access-Control-Request-Method", "POST")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	for name := range w.Header() {
		if strings.HasPrefix(name, "Access-Control-") {
			t.Errorf("a preflight is answered with %s", name)
		}
	}
}

func TestHeadersOfEveryAnswer(t *testing.T) {
	h := serve(t, api.Options{}, &server{})
	for _, path := range []string{"/queue/stats", "/nothing", "/config", "/simple/a/", "/openapi.yaml", "/docs", "/session"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		policy := w.Header().Get("Content-Security-Policy")
		if !strings.HasPrefix(policy, "default-src 'none'; ") || !strings.Contains(policy, "frame-ancestors 'none'") || strings.Contains(policy, "unsafe") {
			t.Errorf("%s: Content-Security-Policy %q", path, policy)
		}
		for name, want := range map[string]string{"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin"} {
			if got := w.Header().Get(name); got != want {
				t.Errorf("%s: %s is %q", path, name, got)
			}
		}
		for name := range w.Header() {
			if strings.HasPrefix(name, "Access-Control-") {
				t.Errorf("%s: has %s", path, name)
			}
		}
	}
}

// /docs shows every operation and every schema, and may run the script that it brings and nothing else.
func TestDocs(t *testing.T) {
	h := apitest.Check(t, serve(t, api.Options{}, &server{}))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/docs", nil))
	page := w.Body.String()
	if w.Code != 200 || w.Header().Get("Content-Type") != "text/html; charset=utf-8" {
		t.Fatalf("%d %v", w.Code, w.Header())
	}
	doc := load(t)
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			if !strings.Contains(page, `id="`+op.OperationID+`"`) || !strings.Contains(page, `data-method="`+method+`" data-path="`+path+`"`) {
				t.Errorf("%s %s is not there", method, path)
			}
		}
	}
	for name := range doc.Components.Schemas {
		if !strings.Contains(page, `id="schema-`+name+`"`) {
			t.Errorf("the schema %s is not there", name)
		}
	}
	for _, ref := range regexp.MustCompile(`href="#([^"]+)"`).FindAllStringSubmatch(page, -1) {
		if !strings.Contains(page, `id="`+ref[1]+`"`) {
			t.Errorf("a link to %s, which is not there", ref[1])
		}
	}
	if strings.Count(page, "<script") != 1 || strings.Count(page, "<style") != 1 || regexp.MustCompile(`(src|href)="(https?:)?//`).MatchString(page) || strings.Contains(page, "style=") {
		t.Error("it loads something, or has a script or style beside the two that its policy names")
	}
	for _, path := range []string{"/docs", "/openapi.yaml"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		r := httptest.NewRequest("GET", path, nil)
		r.Header.Set("If-None-Match", w.Header().Get("ETag"))
		again := httptest.NewRecorder()
		if h.ServeHTTP(again, r); w.Body.Len() == 0 || again.Code != 304 {
			t.Errorf("%s again: %d", path, again.Code)
		}
	}
}
