package access

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/wheelrefinery/refinery/internal/fault"
)

const (
	// SessionTime is how long a session lasts.
	SessionTime  = 12 * time.Hour
	mostSessions = 10_000
	// sessionKept is how long a session is believed in that Postgres was asked for: so long it may outlive its end in another process.
	sessionKept = time.Second
	mostOffered = 4               // session ids of one request that are looked at
	lookUpMost  = 2 * time.Second // for Postgres to answer: nobody is let in meanwhile
)

// session stands for a token until it ends, or the token does. It can do no more than when it began.
type session struct {
	token  digest
	scopes []Scope
	ends   time.Time
	asked  time.Time // when Postgres knew it
}

// noSessions says that there is no telling.
func noSessions(err error) error {
	return fmt.Errorf("%w: %w", fault.New(fault.Unavailable, "Sessions cannot be looked up now. Try again in a moment, or send a token."), err)
}

// lookUp finds the sessions with these ids.
func (g *Guard) lookUp(ctx context.Context, ids []digest) (map[digest]session, error) {
	found := map[digest]session{}
	var unknown [][]byte
	now := g.now()
	g.mu.Lock()
	for _, id := range ids[:min(len(ids), mostOffered)] {
		if s, ok := g.sessions[id]; ok && now.Sub(s.asked) < sessionKept {
			found[id] = s
		} else {
			unknown = append(unknown, id[:])
		}
	}
	g.mu.Unlock()
	if len(unknown) == 0 {
		return found, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookUpMost)
	defer cancel()
	rows, err := g.config.Sessions.Query(ctx, `select id, token, scopes, ends from sessions where id = any($1)`, unknown)
	if err != nil {
		return nil, noSessions(err)
	}
	var id, token []byte
	s := session{asked: now}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, id := range unknown {
		delete(g.sessions, digest(id))
	}
	if len(g.sessions) >= mostSessions {
		clear(g.sessions)
	}
	if _, err := pgx.ForEachRow(rows, []any{&id, &token, &s.scopes, &s.ends}, func() error {
		s.token = digest(token)
		known := s
		known.scopes = slices.Clone(s.scopes)
		found[digest(id)], g.sessions[digest(id)] = known, known
		return nil
	}); err != nil {
		return nil, noSessions(err)
	}
	return found, nil
}

// Begin makes a session of who's token, which every process knows, and returns its id, which is shown once.
func (g *Guard) Begin(ctx context.Context, who *Who) (id string, ends time.Time, err error) {
	id = NewToken()
	ends = g.now().Add(SessionTime).Truncate(time.Second)
	key := sha256.Sum256([]byte(id))
	b := &pgx.Batch{}
	b.Queue(`delete from sessions where ends <= $1`, g.now())
	b.Queue(`delete from sessions where id in (select id from sessions order by ends desc offset $1)`, mostSessions-1)
	b.Queue(`insert into sessions values ($1, $2, $3, $4)`, key[:], who.digest[:], who.Scopes, ends)
	if err := g.config.Sessions.SendBatch(ctx, b).Close(); err != nil {
		return "", ends, noSessions(err)
	}
	return id, ends, nil
}

// End ends sessions. Other processes know within a second.
func (g *Guard) End(ctx context.Context, ids ...string) error {
	keys := make([][]byte, len(ids))
	for i, id := range ids {
		key := sha256.Sum256([]byte(id))
		keys[i] = key[:]
	}
	if _, err := g.config.Sessions.Exec(ctx, `delete from sessions where id = any($1)`, keys); err != nil {
		return noSessions(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, key := range keys {
		delete(g.sessions, digest(key))
	}
	return nil
}

// IndexURL gives the address of the own index as jobs get it. Where reads need a token, it holds a session that reads, as a password:
// what a job runs may see it, and it may see nothing better.
func (g *Guard) IndexURL(address string) func(context.Context) (string, error) {
	u, err := url.Parse(address)
	i := slices.IndexFunc(g.own, func(w Who) bool { return w.Name == Reader })
	if err != nil || i < 0 {
		return func(context.Context) (string, error) { return address, err }
	}
	var mu sync.Mutex
	var ends time.Time
	return func(ctx context.Context) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		if ends.Sub(g.now()) < SessionTime/2 {
			id, until, err := g.Begin(ctx, &g.own[i])
			if err != nil {
				return "", err
			}
			ends, u.User = until, url.UserPassword("job", id)
		}
		return u.String(), nil
	}
}
