package disk

import (
	"fmt"
	"strconv"
	"strings"
)

// mostNesting is how deep sections may be nested. LVM uses three levels.
const mostNesting = 16

// section is a section of LVM's metadata text: values (string, int64 or a list of these) and sections by name.
type section struct {
	values   map[string]any
	sections map[string]*section
	// names are those of the sections, in their order.
	names []string
}

func newSection() *section {
	return &section{values: map[string]any{}, sections: map[string]*section{}}
}

func (s *section) text(name string) string {
	text, _ := s.values[name].(string)
	return text
}

// number returns a number from 0 to most.
func (s *section) number(name string, most int64) (int64, error) {
	n, ok := s.values[name].(int64)
	if !ok || n < 0 || n > most {
		return 0, fmt.Errorf("%w: %s is %v in the metadata of LVM", ErrDamaged, name, s.values[name])
	}
	return n, nil
}

// has reports whether a list of strings has a word.
func (s *section) has(name, word string) bool {
	list, _ := s.values[name].([]any)
	for _, v := range list {
		if v == word {
			return true
		}
	}
	return false
}

// parseText parses the text. The grammar is that of lvm.conf:
//
//	file    = { item }
//	item    = name "=" value | name "{" file "}"
//	value   = string | number | "[" [ value { "," value } ] "]"
//
// with comments from "#" to the end of the line.
func parseText(text string) (*section, error) {
	p := parser{rest: text}
	s, err := p.items(0)
	if err == nil && p.token != "" {
		err = p.unexpected()
	}
	return s, err
}

type parser struct {
	rest string
	// token is the one that was read: a string begins with a quote. It is empty at the end.
	token string
}

func (p *parser) unexpected() error {
	return fmt.Errorf("%w: %.40q is not expected in the metadata of LVM", ErrDamaged, p.token)
}

// next reads the next token.
func (p *parser) next() error {
	for {
		p.rest = strings.TrimLeft(p.rest, " \t\r\n\x00")
		if !strings.HasPrefix(p.rest, "#") {
			break
		}
		_, p.rest, _ = strings.Cut(p.rest, "\n")
	}
	length := 0
	switch {
	case p.rest == "":
	case strings.ContainsRune("={}[],", rune(p.rest[0])):
		length = 1
	case p.rest[0] == '"':
		for length = 1; ; length++ {
			if length >= len(p.rest) {
				p.token = p.rest
				return p.unexpected()
			}
			if p.rest[length] == '\\' {
				length++
			} else if p.rest[length] == '"' {
				break
			}
		}
		length++
	default:
		if length = strings.IndexAny(p.rest, "={}[],\"# \t\r\n\x00"); length < 0 {
			length = len(p.rest)
		}
	}
	p.token, p.rest = p.rest[:length], p.rest[length:]
	return nil
}

// items reads items up to the end, or up to a brace that it leaves as the token.
func (p *parser) items(depth int) (*section, error) {
	s := newSection()
	if depth > mostNesting {
		return nil, fmt.Errorf("%w: the metadata of LVM has more than %d levels", ErrDamaged, mostNesting)
	}
	for {
		if err := p.next(); err != nil {
			return nil, err
		}
		if p.token == "" || p.token == "}" {
			return s, nil
		}
		name := p.token
		if strings.ContainsAny(name, "={}[],\"") {
			return nil, p.unexpected()
		}
		if err := p.next(); err != nil {
			return nil, err
		}
		switch p.token {
		case "=":
			value, err := p.value(depth + 1)
			if err != nil {
				return nil, err
			}
			s.values[name] = value
		case "{":
			inner, err := p.items(depth + 1)
			if err != nil {
				return nil, err
			}
			if p.token != "}" {
				return nil, p.unexpected()
			}
			if s.sections[name] == nil {
				s.names = append(s.names, name)
			}
			s.sections[name] = inner
		default:
			return nil, p.unexpected()
		}
	}
}

func (p *parser) value(depth int) (any, error) {
	if depth > mostNesting {
		return nil, p.unexpected()
	}
	if err := p.next(); err != nil {
		return nil, err
	}
	switch {
	case strings.HasPrefix(p.token, `"`):
		return unquote(p.token), nil
	case p.token == "[":
		return p.list(depth)
	}
	n, err := strconv.ParseInt(p.token, 10, 64)
	if err != nil {
		if _, isFloat := strconv.ParseFloat(p.token, 64); isFloat == nil && p.token != "" {
			return p.token, nil
		}
		return nil, p.unexpected()
	}
	return n, nil
}

// list reads a list after its bracket.
func (p *parser) list(depth int) (any, error) {
	list := []any{}
	for {
		before := p.rest
		if err := p.next(); err != nil {
			return nil, err
		}
		switch p.token {
		case "]":
			return list, nil
		case ",":
			continue
		}
		p.rest = before
		v, err := p.value(depth + 1)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
}

// unquote takes the quotes and the backslashes before quotes and backslashes away.
func unquote(token string) string {
	return strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace(token[1 : len(token)-1])
}
