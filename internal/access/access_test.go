package access

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/wheelrefinery/refinery/internal/fault"
	"github.com/wheelrefinery/refinery/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func newGuard(t *testing.T, c Config) (*Guard, *time.Time, *bytes.Buffer) {
	var log bytes.Buffer
	if c.Sessions == nil {
		c.Sessions = pgtest.New(t)
	}
	c.Logger = slog.New(slog.NewTextHandler(&log, nil))
	g, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	g.now = func() time.Time { return now }
	return g, &now, &log
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func line(t *testing.T, name, token string, scopes ...Scope) string {
	t.Helper()
	l, err := Line(name, scopes, token)
	if err != nil {
		t.Fatal(err)
	}
	return l + "\n"
}

func name(t *testing.T, g *Guard, tokens, ids []string) string {
	t.Helper()
	who, err := g.Check(t.Context(), "192.0.2.1:1", tokens, ids)
	if err != nil {
		t.Fatal(err)
	}
	if who == nil {
		return ""
	}
	return who.Name
}

// A token works within a second of its line being written and stops within a second of its being taken away, and its sessions with it.
// A file that does not parse changes nothing.
func TestFileIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens")
	one, two := NewToken(), NewToken()
	write(t, path, "# people\n\n"+line(t, "ann", one, Write))
	g, now, log := newGuard(t, Config{File: path})
	who, err := g.Check(t.Context(), "192.0.2.1:1", []string{"nothing", one}, nil)
	if err != nil || who == nil || who.Name != "ann" || !who.Named || !who.May(Write) || !who.May(Read) || who.May(Worker) || who.May(Admin) {
		t.Fatalf("%+v %v", who, err)
	}
	session, ends := begin(t, g, who)
	if got := name(t, g, nil, []string{session}); got != "ann" || ends.Sub(*now) > SessionTime {
		t.Errorf("the session is %q's until %v", got, ends)
	}
	write(t, path, line(t, "ann", one, Write)+line(t, "bob", two, Admin))
	if got := name(t, g, []string{two}, nil); got != "" {
		t.Errorf("read within the second: %q", got)
	}
	*now = now.Add(lookEvery)
	if got := name(t, g, []string{two}, nil); got != "bob" {
		t.Errorf("the new token is %q's", got)
	}
	write(t, path, line(t, "bob", two, Admin)+"nonsense\n")
	*now = now.Add(lookEvery)
	if got := name(t, g, []string{one}, nil); got != "ann" {
		t.Errorf("after a file that does not parse: %q", got)
	}
	if !strings.Contains(log.String(), "line 2") || strings.Contains(log.String(), "nonsense") {
		t.Errorf("the log says %s", log)
	}
	write(t, path, line(t, "bob", two, Admin))
	*now = now.Add(lookEvery)
	if got := name(t, g, []string{one}, []string{session}); got != "" {
		t.Errorf("a token that was taken away, or its session, is still %q's", got)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	*now = now.Add(lookEvery)
	if got := name(t, g, []string{two}, nil); got != "bob" {
		t.Errorf("without the file: %q", got)
	}
}

func begin(t *testing.T, g *Guard, who *Who) (id string, ends time.Time) {
	t.Helper()
	id, ends, err := g.Begin(t.Context(), who)
	if err != nil {
		t.Fatal(err)
	}
	return id, ends
}

func TestSessionsEnd(t *testing.T) {
	g, now, _ := newGuard(t, Config{Worker: "w"})
	who, _ := g.Check(t.Context(), "192.0.2.1:1", []string{"w"}, nil)
	a, _ := begin(t, g, who)
	b, _ := begin(t, g, who)
	if a == b || name(t, g, nil, []string{a}) != Operator {
		t.Error("the session does not work")
	}
	if name(t, g, []string{a}, nil) != "" {
		t.Error("a session's id is taken for a token")
	}
	if name(t, g, nil, []string{"w"}) != "" {
		t.Error("a token is taken for a session's id")
	}
	if err := g.End(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if name(t, g, nil, []string{a}) != "" || name(t, g, nil, []string{a, b}) != Operator {
		t.Error("End ended the wrong one")
	}
	*now = now.Add(SessionTime)
	if name(t, g, nil, []string{b}) != "" {
		t.Error("the session lasts for ever")
	}
	if _, err := g.config.Sessions.Exec(t.Context(), `insert into sessions select sha256(n::text::bytea), $1, '{read}', $2::timestamptz + n * interval '1 ms' from generate_series(1, $3::int) n`,
		who.digest[:], *now, mostSessions+5); err != nil {
		t.Fatal(err)
	}
	last, _ := begin(t, g, who)
	var n int
	if err := g.config.Sessions.QueryRow(t.Context(), `select count(*) from sessions`).Scan(&n); err != nil || n != mostSessions {
		t.Errorf("%d sessions, %v", n, err)
	}
	if name(t, g, nil, []string{last}) != Operator {
		t.Error("the newest is not among those that are kept")
	}
}

// A session that one process began holds in another, and ends there within a second of its end.
func TestSessionsOfAnotherProcess(t *testing.T) {
	here, _, _ := newGuard(t, Config{Worker: "w"})
	there, now, _ := newGuard(t, Config{Worker: "w", Sessions: here.config.Sessions})
	who, _ := here.Check(t.Context(), "192.0.2.1:1", []string{"w"}, nil)
	id, _ := begin(t, here, who)
	if name(t, there, nil, []string{id}) != Operator {
		t.Error("the other process does not know the session")
	}
	if err := here.End(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	*now = now.Add(sessionKept)
	if name(t, there, nil, []string{id}) != "" {
		t.Error("the session did not end in the other process")
	}
	// Without Postgres there is no telling: neither yes nor no. A token needs none.
	there.config.Sessions.Close()
	if who, err := there.Check(t.Context(), "192.0.2.1:1", nil, []string{id}); who != nil || fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("without Postgres: %+v, %v", who, err)
	}
	if name(t, there, []string{"w"}, []string{id}) != Operator {
		t.Error("without Postgres a token is not known")
	}
}

// What jobs get reads and does no more, even where one token is set for everything.
func TestIndexURL(t *testing.T) {
	g, now, _ := newGuard(t, Config{Worker: "same", Read: "same"})
	address := g.IndexURL("http://h:1/simple/")
	password := func() string {
		text, err := address(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		u, err := url.Parse(text)
		if err != nil || u.Host != "h:1" || u.Path != "/simple/" {
			t.Fatalf("%v %v", u, err)
		}
		p, _ := u.User.Password()
		return p
	}
	first := password()
	who, err := g.Check(t.Context(), "192.0.2.1:1", nil, []string{first})
	if err != nil || who == nil || !who.May(Read) || who.May(Write) || who.May(Worker) || who.May(Admin) {
		t.Errorf("%+v %v", who, err)
	}
	if password() != first {
		t.Error("each job has a session of its own: they would crowd out those of people")
	}
	*now = now.Add(SessionTime/2 + time.Minute)
	if password() == first {
		t.Error("a job gets a session that ends soon")
	}
	open, _, _ := newGuard(t, Config{Worker: "w"})
	if got, err := open.IndexURL("http://h/simple/")(t.Context()); err != nil || got != "http://h/simple/" {
		t.Errorf("where reads are open: %s", got)
	}
}

func TestPeers(t *testing.T) {
	g, now, _ := newGuard(t, Config{Worker: "w", Read: "r"})
	try := func(address, token string) error {
		_, err := g.Check(t.Context(), address, []string{token}, nil)
		return err
	}
	for i := range mostWrong {
		if err := try(fmt.Sprintf("[2001:db8::%x]:1", i), "guess"); err != nil {
			t.Fatal(i, err)
		}
	}
	if err := try("[2001:db8::ffff]:1", "w"); !errors.Is(err, ErrGuessed) {
		t.Errorf("an IPv6 network guesses on: %v", err)
	}
	if err := try("[2001:db8:0:1::1]:1", "w"); err != nil {
		t.Errorf("another network: %v", err)
	}
	*now = now.Add(forgiveEach)
	if err := try("[2001:db8::1]:1", "w"); err != nil {
		t.Errorf("after a while: %v", err)
	}
	for i := range 2 * mostPeers {
		if err := try(fmt.Sprintf("10.%d.%d.%d:1", i>>16, i>>8&255, i&255), "guess"); err != nil {
			t.Fatal(err)
		}
	}
	if len(g.peers) > mostPeers {
		t.Errorf("%d addresses are kept", len(g.peers))
	}
}

func TestParseRefuses(t *testing.T) {
	sum := sha256.Sum256([]byte("x"))
	hash := hex.EncodeToString(sum[:])
	for text, want := range map[string]string{
		"ann write":                               "line 1",
		"ann write " + hash[1:]:                   "SHA-256",
		"ann write secret":                        "SHA-256",
		"ann all " + hash:                         "scopes are",
		"ann  " + hash:                            "write a name",
		"ann write," + " " + hash:                 "scopes are",
		"operator write " + hash:                  "taken",
		"Local read " + hash:                      "taken",
		"9ann read " + hash:                       "name is",
		"worker/w read " + hash:                   "name is",
		"ann read " + hash + " more":              "write a name",
		"ann read " + hash + "\nbob read " + hash: "line 2",
		strings.Repeat("#", mostFile+1):           "larger",
	} {
		if _, err := parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), hash) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%.60q: %v, want %q", text, err, want)
		}
	}
	path := filepath.Join(t.TempDir(), "tokens")
	write(t, path, "")
	if err := os.Chmod(path, 0o622); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{File: path}); err == nil || !strings.Contains(err.Error(), "chmod") {
		t.Errorf("a file that others can write: %v", err)
	}
	if _, err := New(Config{File: path + "x"}); err == nil {
		t.Error("a file that is not there")
	}
	if _, err := New(Config{Read: "r"}); err == nil || !strings.Contains(err.Error(), "WORKER_TOKEN") {
		t.Errorf("a token for reads alone: %v", err)
	}
}

// Whatever parses gives names and scopes that Line takes again.
func FuzzParse(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		all, err := parse(data)
		if err != nil {
			return
		}
		for _, w := range all {
			if _, err := Line(w.Name, w.Scopes, "x"); err != nil || len(w.Scopes) == 0 || w.Scopes[0] == "" {
				t.Fatalf("%+v: %v", w, err)
			}
		}
	})
}
