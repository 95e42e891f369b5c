// Package access says who sends a request and what they may do: tokens with scopes, sessions that stand for a token, and how often an
// address may guess. It holds the SHA-256 of tokens, never the tokens.
package access

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

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
	// Sessions is where sessions are kept, with the tables of package migrations. Required where there are tokens.
	Sessions *pgxpool.Pool
	Logger   *slog.Logger
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
	sessions map[digest]session // that were asked for lately
	peers    peers

	now func() time.Time // a test's clock
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
// is. The time that it takes does not depend on how nearly an offer is right. The error is ErrGuessed, or says that sessions cannot be
// looked up now.
func (g *Guard) Check(ctx context.Context, address string, tokens, ids []string) (*Who, error) {
	if len(tokens)+len(ids) == 0 {
		return nil, nil
	}
	g.reload()
	offered, offeredIDs := digests(tokens), digests(ids)
	if who, err := g.checkTokens(address, offered, offeredIDs); who != nil || err != nil {
		return who, err
	}
	if len(ids) > 0 {
		found, err := g.lookUp(ctx, offeredIDs)
		if err != nil {
			return nil, err
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		for _, id := range offeredIDs {
			s, ok := found[id]
			if !ok || !g.now().Before(s.ends) {
				continue // a session that has ended is no guess
			}
			if who := g.find(s.token); who != nil {
				g.peers.of(address, g.now()).remember(id)
				who.Expires = s.ends
				who.Scopes = slices.DeleteFunc(slices.Clone(who.Scopes), func(scope Scope) bool { return !slices.Contains(s.scopes, scope) })
				return who, nil
			}
		}
	} else {
		g.mu.Lock()
		defer g.mu.Unlock()
	}
	if len(tokens) > 0 {
		g.peers.of(address, g.now()).wrong++
	}
	return nil, nil
}

func digests(texts []string) []digest {
	all := make([]digest, len(texts))
	for i, text := range texts {
		all[i] = sha256.Sum256([]byte(text))
	}
	return all
}

// checkTokens finds whose token was offered, unless the address has guessed too often and offers nothing that was let in from there.
func (g *Guard) checkTokens(address string, tokens, ids []digest) (*Who, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	peer := g.peers.of(address, g.now())
	if peer.exhausted() && !slices.ContainsFunc(tokens, peer.knows) && !slices.ContainsFunc(ids, peer.knows) {
		return nil, ErrGuessed
	}
	for _, offer := range tokens {
		if who := g.find(offer); who != nil {
			peer.remember(offer)
			return who, nil
		}
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
