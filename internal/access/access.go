// Package access says who sends a request and what they may do: tokens with scopes, sessions that stand for a token, and how often an
// address may guess. It holds the SHA-256 of tokens, never the tokens.
package access

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"log/slog"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/wheelrefinery/refinery/internal/fault"
)

// Scope is a kind of thing that a token lets its bearer do.
type Scope string

// The scopes. Each but Read includes Read, Admin includes Write too. Worker stands apart: what it lets in becomes wheels.
const (
	Open   Scope = "" // needs nothing
	Read   Scope = "read"
	Write  Scope = "write"
	Worker Scope = "worker"
	Admin  Scope = "admin"
)

// Scopes lists the scopes that a token may have.
var Scopes = []Scope{Read, Write, Worker, Admin}

// Who is the bearer of a token.
type Who struct {
	Name    string
	Named   bool // by the tokens file
	Scopes  []Scope
	Expires time.Time // of the session that was shown; zero for a token

	digest digest
}

// May says that the scopes cover s.
func (w *Who) May(s Scope) bool {
	has := func(s Scope) bool { return slices.Contains(w.Scopes, s) }
	switch s {
	case Open:
		return true
	case Read:
		return len(w.Scopes) > 0
	case Write:
		return has(Write) || has(Admin)
	case Worker, Admin:
		return has(s)
	}
	return false
}

// Names of those whose tokens come without one.
const (
	Operator = "operator" // WORKER_TOKEN
	Reader   = "reader"   // READ_TOKEN
)

type digest [sha256.Size]byte

// Config says which tokens there are. All may be empty: then everything is open.
type Config struct {
	Worker string // may do everything
	Read   string // when set, reads need a token too
	File   string // further tokens, by name; see ReadFile
	Logger *slog.Logger
}

// Guard knows the tokens and sessions.
type Guard struct {
	config Config
	own    []Who
	named  atomic.Pointer[[]Who]

	fileMu  sync.Mutex
	looked  time.Time
	changed stamp

	mu       sync.Mutex
	sessions map[digest]session
	peers    peers

	now func() time.Time // a test's clock
}

// session stands for a token until it ends, or the token does. It can do no more than when it began.
type session struct {
	token  digest
	scopes []Scope
	ends   time.Time
}

// New makes a Guard; an error says what is wrong with the tokens file.
func New(c Config) (*Guard, error) {
	if c.Read != "" && c.Worker == "" && c.File == "" {
		return nil, fault.New(fault.Invalid, "READ_TOKEN is set and writes are open: set WORKER_TOKEN as well")
	}
	g := &Guard{config: c, sessions: map[digest]session{}, peers: peers{}, now: time.Now}
	if c.Worker != "" {
		g.own = append(g.own, Who{Name: Operator, Scopes: Scopes, digest: sha256.Sum256([]byte(c.Worker))})
	}
	if c.Read != "" {
		g.own = append(g.own, Who{Name: Reader, Scopes: []Scope{Read}, digest: sha256.Sum256([]byte(c.Read))})
	}
	g.named.Store(&[]Who{})
	if c.File != "" {
		var err error
		if g.changed, err = stampOf(c.File); err != nil {
			return nil, fault.New(fault.Invalid, "TOKENS_FILE cannot be read: %w", err)
		}
		named, err := ReadFile(c.File)
		if err != nil {
			return nil, err
		}
		g.named.Store(&named)
	}
	return g, nil
}

// Needs says that s needs a token here.
func (g *Guard) Needs(s Scope) bool {
	switch s {
	case Open:
		return false
	case Read:
		return g.config.Read != ""
	}
	return g.config.Worker != "" || g.config.File != ""
}

// ErrGuessed says that an address has offered too many wrong tokens of late.
var ErrGuessed = errors.New("too many wrong tokens")

// Check finds whose token or session id was offered from an address (as in http.Request.RemoteAddr), the first that is known; nil: none
// is. The time that it takes does not depend on how nearly an offer is right.
func (g *Guard) Check(address string, tokens, ids []string) (*Who, error) {
	if len(tokens)+len(ids) == 0 {
		return nil, nil
	}
	offers := make([]digest, 0, len(tokens)+len(ids))
	for _, t := range append(slices.Clone(tokens), ids...) {
		offers = append(offers, sha256.Sum256([]byte(t)))
	}
	g.reload()
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	peer := g.peers.of(address, now)
	if peer.exhausted() && !slices.ContainsFunc(offers, peer.knows) {
		return nil, ErrGuessed
	}
	for i, offer := range offers {
		token, s := offer, session{scopes: Scopes}
		if i >= len(tokens) { // an id of a session: as long and random as a token, so that a map is no way to guess it
			var ok bool
			if s, ok = g.sessions[offer]; !ok || !now.Before(s.ends) {
				delete(g.sessions, offer)
				continue
			}
			token = s.token
		}
		if who := g.find(token); who != nil {
			peer.remember(offer)
			who.Expires = s.ends
			who.Scopes = slices.DeleteFunc(slices.Clone(who.Scopes), func(scope Scope) bool { return !slices.Contains(s.scopes, scope) })
			return who, nil
		}
	}
	if len(tokens) > 0 { // a session that has ended is no guess
		peer.wrong++
	}
	return nil, nil
}

// find returns a copy of the token with this digest. It compares with all of them.
func (g *Guard) find(d digest) *Who {
	var found *Who
	for _, list := range [][]Who{g.own, *g.named.Load()} {
		for i := range list {
			if subtle.ConstantTimeCompare(list[i].digest[:], d[:]) == 1 && found == nil {
				w := list[i]
				found = &w
			}
		}
	}
	return found
}

const (
	// SessionTime is how long a session lasts.
	SessionTime  = 12 * time.Hour
	mostSessions = 10_000
)

// Begin makes a session of who's token and returns its id, which is shown once.
func (g *Guard) Begin(who *Who) (id string, ends time.Time) {
	id = NewToken()
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	if len(g.sessions) >= mostSessions {
		var oldest digest
		first := now.Add(2 * SessionTime)
		for d, s := range g.sessions {
			if s.ends.Before(first) {
				oldest, first = d, s.ends
			}
		}
		delete(g.sessions, oldest)
	}
	ends = now.Add(SessionTime).Truncate(time.Second)
	g.sessions[sha256.Sum256([]byte(id))] = session{who.digest, who.Scopes, ends}
	return id, ends
}

// End ends sessions.
func (g *Guard) End(ids ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, id := range ids {
		delete(g.sessions, sha256.Sum256([]byte(id)))
	}
}

// IndexURL gives the address of the own index as jobs get it. Where reads need a token, it holds a session that reads, as a password:
// what a job runs may see it, and it may see nothing better.
func (g *Guard) IndexURL(address string) func() string {
	u, err := url.Parse(address)
	i := slices.IndexFunc(g.own, func(w Who) bool { return w.Name == Reader })
	if err != nil || i < 0 {
		return func() string { return address }
	}
	var mu sync.Mutex
	var ends time.Time
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		if ends.Sub(g.now()) < SessionTime/2 {
			var id string
			id, ends = g.Begin(&g.own[i])
			u.User = url.UserPassword("job", id)
		}
		return u.String()
	}
}
