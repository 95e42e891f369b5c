// Package ui is the web page. It talks HTTP only: the API is served to it under /api, from the same origin.
package ui

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"net/http"
	"strings"
)

//go:embed page.html
var page []byte

// Handler serves the page at / and api under /api/.
func Handler(api http.Handler) http.Handler {
	// The page may run its own script and nothing else: what it shows comes from builds, which are hostile.
	policy := "default-src 'none'; connect-src 'self'; script-src " + source("script") + "; style-src " + source("style") +
		"; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	mux := http.NewServeMux()
	mux.Handle("/api/", http.StripPrefix("/api", api))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-cache")
		_, _ = w.Write(page) // fails when the reader has gone
	})
	return mux
}

// source names the element <tag> of the page by its hash (Content Security Policy, level 2).
func source(tag string) string {
	_, rest, _ := strings.Cut(string(page), "<"+tag+">")
	text, _, _ := strings.Cut(rest, "</"+tag+">")
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}
