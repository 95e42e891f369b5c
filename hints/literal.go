package hints

import (
	"bytes"
	"regexp/syntax"
	"slices"
	"strings"
	"unicode"
)

const (
	leastLiteral = 3  // bytes; a pattern must have one of at least this length
	mostExact    = 32 // strings that part of a pattern is spelt out to
	mostSpelt    = 4_000
)

// literals returns what a folded line must hold where the pattern matches it: of each list at least one string, one after the other, without
// overlap. Without any list a line tells nothing before the pattern is tried.
func literals(re *syntax.Regexp) [][]string {
	return need(re).lists()
}

// needs says what part of a pattern needs: exactly one of some strings, or lists as literals returns them.
type needs struct {
	exact []string // nil: not known
	must  [][]string
}

func (n needs) lists() [][]string {
	if n.exact == nil {
		return n.must
	}
	return useful(n.exact)
}

// useful is a list of literals without those that hold another one, or nothing where one is too short to tell anything.
func useful(exact []string) [][]string {
	slices.SortFunc(exact, func(a, b string) int { return len(a) - len(b) })
	if len(exact) == 0 || len(exact[0]) < leastLiteral {
		return nil
	}
	var list []string
	for _, s := range exact {
		if !slices.ContainsFunc(list, func(shorter string) bool { return strings.Contains(s, shorter) }) {
			list = append(list, s)
		}
	}
	return [][]string{list}
}

// need looks at a simplified pattern.
func need(re *syntax.Regexp) needs {
	switch re.Op {
	case syntax.OpEmptyMatch, syntax.OpBeginLine, syntax.OpEndLine, syntax.OpBeginText, syntax.OpEndText, syntax.OpWordBoundary, syntax.OpNoWordBoundary:
		return needs{exact: []string{""}}
	case syntax.OpLiteral:
		var parts []needs
		var run strings.Builder
		for _, r := range re.Rune {
			one := rune1(r, re.Flags&syntax.FoldCase != 0)
			if one.exact == nil {
				parts = append(parts, needs{exact: []string{run.String()}}, one)
				run.Reset()
				continue
			}
			run.WriteString(one.exact[0])
		}
		return concat(append(parts, needs{exact: []string{run.String()}}))
	case syntax.OpCharClass:
		var parts []needs
		for i := 0; i < len(re.Rune); i += 2 {
			if int(re.Rune[i+1]-re.Rune[i])+len(parts) >= mostExact {
				return needs{}
			}
			for r := re.Rune[i]; r <= re.Rune[i+1]; r++ {
				parts = append(parts, rune1(r, false))
			}
		}
		return alternate(parts)
	case syntax.OpCapture:
		return need(re.Sub[0])
	case syntax.OpQuest:
		return alternate([]needs{need(re.Sub[0]), {exact: []string{""}}})
	case syntax.OpPlus:
		return needs{must: need(re.Sub[0]).lists()}
	case syntax.OpConcat:
		return concat(all(re.Sub))
	case syntax.OpAlternate:
		return alternate(all(re.Sub))
	}
	return needs{} // repetitions that may be empty, any character, nothing at all
}

func all(subs []*syntax.Regexp) []needs {
	out := make([]needs, len(subs))
	for i, s := range subs {
		out[i] = need(s)
	}
	return out
}

// rune1 is exact for a character whose spellings in a line all fold to the same bytes. U+FFFD also matches bytes that are no text.
func rune1(r rune, anyCase bool) needs {
	folded := string(fold([]byte(string(r))))
	if r == unicode.ReplacementChar {
		return needs{}
	}
	for other := unicode.SimpleFold(r); anyCase && other != r; other = unicode.SimpleFold(other) {
		if string(fold([]byte(string(other)))) != folded {
			return needs{}
		}
	}
	return needs{exact: []string{folded}}
}

// concat spells out neighbours together as long as they are few.
func concat(parts []needs) needs {
	exact, whole := []string{""}, true
	var must [][]string
	flush := func(next []string) {
		must, exact = append(must, useful(exact)...), next
		whole = false
	}
	for _, p := range parts {
		switch {
		case p.exact == nil:
			flush([]string{""})
			must = append(must, p.must...)
		case len(exact)*len(p.exact) > mostExact || len(exact[0])+len(p.exact[0]) > mostSpelt:
			flush(p.exact)
		default:
			var next []string
			for _, a := range exact {
				for _, b := range p.exact {
					next = append(next, a+b)
				}
			}
			exact = unique(next)
		}
	}
	if whole {
		return needs{exact: exact}
	}
	flush(nil)
	return needs{must: must}
}

// alternate needs what any one of the parts needs.
func alternate(parts []needs) needs {
	var exact []string
	for _, p := range parts {
		if p.exact == nil || len(exact)+len(p.exact) > 2*mostExact {
			return needs{must: either(parts)}
		}
		exact = append(exact, p.exact...)
	}
	if exact = unique(exact); len(exact) > mostExact {
		return needs{must: either(parts)}
	}
	return needs{exact: exact}
}

// either takes the list of each part whose shortest literal is the longest. A part without one spoils it.
func either(parts []needs) [][]string {
	var list []string
	for _, p := range parts {
		lists := p.lists()
		if len(lists) == 0 {
			return nil
		}
		list = append(list, slices.MaxFunc(lists, func(a, b []string) int { return len(a[0]) - len(b[0]) })...)
	}
	return useful(unique(list))
}

func unique(list []string) []string {
	slices.Sort(list)
	return slices.Compact(list)
}

// fold writes text that differs only in the case of ASCII letters in one way, into the same bytes. The two other characters whose lower
// case is an ASCII letter, the Kelvin sign and the long s, become that letter.
func fold(b []byte) []byte {
	wide := false
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
		wide = wide || c >= 0x80
	}
	if wide {
		b = bytes.ReplaceAll(bytes.ReplaceAll(b, []byte("\u212a"), []byte("k")), []byte("\u017f"), []byte("s"))
	}
	return b
}
