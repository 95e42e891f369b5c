package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/wheelrefinery/refinery/internal/access"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// SessionCookie is the cookie that holds a session's id.
const SessionCookie = "refinery_session"

// Of the contract; the generator leaves out what only its index operations use.
type (
	sessionRequest struct {
		Token string `json:"token"`
	}
	session struct {
		Name      string         `json:"name"`
		Scopes    []access.Scope `json:"scopes"`
		ExpiresAt time.Time      `json:"expires_at,omitzero"`
	}
)

// offers are the tokens and session ids that a request carries.
type offers struct{ tokens, sessions []string }

// take collects what r offers and removes what stands in its query, so that nothing further on sees or logs it. A password (HTTP Basic)
// is taken from those who read: pip knows nothing else. It may be a session's id, which jobs get.
func take(r *http.Request) offers {
	var o offers
	if t := r.Header.Get("X-Worker-Token"); t != "" {
		o.tokens = append(o.tokens, t)
	}
	if scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "Bearer") {
		o.tokens = append(o.tokens, strings.TrimSpace(token))
	} else if _, password, ok := r.BasicAuth(); ok && safe(r.Method) {
		o.tokens, o.sessions = append(o.tokens, password), append(o.sessions, password)
	}
	if strings.Contains(r.URL.RawQuery, "token=") {
		var kept []string
		for part := range strings.SplitSeq(r.URL.RawQuery, "&") {
			if value, ok := strings.CutPrefix(part, "token="); ok {
				value, _ = url.QueryUnescape(value) // what does not unescape is no token
				o.tokens = append(o.tokens, value)
			} else {
				kept = append(kept, part)
			}
		}
		u := *r.URL
		u.RawQuery = strings.Join(kept, "&")
		r.URL, r.RequestURI = &u, u.RequestURI()
	}
	for _, c := range r.CookiesNamed(SessionCookie) {
		o.sessions = append(o.sessions, c.Value)
	}
	return o
}

// admit finds out who sends r and whether they may do what needs scope.
func (h *handler) admit(r *http.Request, info *Request, scope access.Scope) error {
	o := take(r)
	if h.guard == nil {
		return nil
	}
	who, err := h.guard.Check(r.Context(), r.RemoteAddr, o.tokens, o.sessions)
	if err != nil && h.guard.Needs(scope) {
		return guessed(err)
	}
	if who != nil {
		info.who, info.Actor = who, who.Name
		if who.Named {
			info.Token = who.Name
		}
	}
	switch {
	case !h.guard.Needs(scope):
		return nil
	case who == nil:
		return fault.New(fault.Unauthorized, "Send a token in X-Worker-Token, or as Authorization: Bearer.")
	case !who.May(scope):
		return &scopeError{scope}
	}
	return nil
}

// guessed makes a 429 of access.ErrGuessed.
func guessed(err error) error {
	if errors.Is(err, access.ErrGuessed) {
		return &httpError{status: http.StatusTooManyRequests, detail: "Too many wrong tokens came from this address. Wait a minute.", retry: "60"}
	}
	return err
}

// scopeError says that a token does not reach.
type scopeError struct{ scope access.Scope }

func (e *scopeError) Error() string {
	return fmt.Sprintf("This token may not do that: it needs the scope %s.", e.scope)
}

func (e *scopeError) Unwrap() error { return &fault.Error{Code: fault.Forbidden, Message: e.Error()} }

// session answers the operations of /session.
func (h *handler) session(w http.ResponseWriter, r *http.Request, info *Request) error {
	w.Header().Set("Cache-Control", "no-store")
	cookie := &http.Cookie{
		Name: SessionCookie, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode,
		Secure: r.TLS != nil || strings.EqualFold(r.Header.Get("X-Forwarded-Proto"), "https"),
	}
	switch r.Method {
	case http.MethodDelete:
		if h.guard != nil {
			if err := h.endSessions(r); err != nil {
				return err
			}
		}
		cookie.MaxAge = -1
		http.SetCookie(w, cookie)
		w.WriteHeader(http.StatusNoContent)
		return nil
	case http.MethodPost:
		var b sessionRequest
		if err := json.NewDecoder(r.Body).Decode(&b); err != nil {
			return bodyError(err)
		}
		if h.guard == nil {
			return fault.New(fault.Conflict, "This server has no tokens: everything is open.")
		}
		who, err := h.guard.Check(r.Context(), r.RemoteAddr, []string{b.Token}, nil)
		if err != nil {
			return guessed(err)
		}
		if who == nil {
			return fault.New(fault.Unauthorized, "The token is not known here.")
		}
		if err := h.endSessions(r); err != nil {
			return err
		}
		if cookie.Value, cookie.Expires, err = h.guard.Begin(r.Context(), who); err != nil {
			return err
		}
		http.SetCookie(w, cookie)
		info.who, info.Actor, who.Expires = who, who.Name, cookie.Expires
		return h.whoami(w, info, http.StatusCreated)
	}
	return h.whoami(w, info, http.StatusOK)
}

// endSessions ends those that r came with.
func (h *handler) endSessions(r *http.Request) error {
	var ids []string
	for _, c := range r.CookiesNamed(SessionCookie) {
		ids = append(ids, c.Value)
	}
	if len(ids) == 0 {
		return nil
	}
	return h.guard.End(r.Context(), ids...)
}

// whoami answers with what the sender of the request may do.
func (h *handler) whoami(w http.ResponseWriter, info *Request, status int) error {
	s := session{Name: info.Actor, Scopes: []access.Scope{}}
	for _, scope := range access.Scopes {
		if h.guard == nil || !h.guard.Needs(scope) || info.who != nil && info.who.May(scope) {
			s.Scopes = append(s.Scopes, scope)
		}
	}
	if info.who != nil {
		s.ExpiresAt = info.who.Expires
	}
	return Answer{Status: status, Body: s}.write(w)
}

// scopeOf reads what an operation needs: x-scope where it says so, otherwise read for GET and write for the rest.
func scopeOf(method string, extensions map[string]any) (access.Scope, error) {
	switch v := extensions["x-scope"].(type) {
	case nil:
		if method == http.MethodGet {
			return access.Read, nil
		}
		return access.Write, nil
	case string:
		if v == "none" {
			return access.Open, nil
		}
		if s := access.Scope(v); slices.Contains(access.Scopes, s) {
			return s, nil
		}
	}
	return "", fmt.Errorf("openapi.yaml: x-scope is none, read, write, worker or admin")
}
