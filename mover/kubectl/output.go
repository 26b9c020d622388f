package kubectl

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/pflag"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/cli-runtime/pkg/printers"
	"sigs.k8s.io/yaml"
)

// output is the format of a result.
type output string

func (o *output) add(flags *pflag.FlagSet) {
	flags.StringVarP((*string)(o), "output", "o", "table", "`format` of the result: table, wide, json or yaml")
}

func (o output) check() error {
	switch o {
	case "table", "wide", "json", "yaml":
		return nil
	}
	return fmt.Errorf("output format is %q, want table, wide, json or yaml", string(o))
}

// column is a column of a table. Wide ones are left out of narrow tables.
type column struct {
	name string
	wide bool
}

// print writes facts, or the rows that show them to people.
func (o output) print(w io.Writer, facts any, columns []column, rows [][]any) error {
	switch o {
	case "json":
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "    ")
		return encoder.Encode(facts)
	case "yaml":
		text, err := yaml.Marshal(facts)
		if err != nil {
			return fmt.Errorf("render result: %w", err)
		}
		_, err = w.Write(text)
		return err
	}
	table := &metav1.Table{}
	for _, c := range columns {
		definition := metav1.TableColumnDefinition{Name: c.name, Type: "string"}
		if c.wide {
			definition.Priority = 1
		}
		table.ColumnDefinitions = append(table.ColumnDefinitions, definition)
	}
	for _, row := range rows {
		table.Rows = append(table.Rows, metav1.TableRow{Cells: row})
	}
	return printers.NewTablePrinter(printers.PrintOptions{Wide: o == "wide"}).PrintObj(table, w)
}

// unknown stands for what is not known, or does not apply.
const unknown = "-"

func or(text string) string {
	if text == "" {
		return unknown
	}
	return text
}

func size(n int64) string {
	if n < 0 {
		return unknown
	}
	return strings.ReplaceAll(humanize.IBytes(uint64(n)), " ", "")
}

func lasting(d time.Duration) string {
	if d <= 0 {
		return unknown
	}
	return duration.HumanDuration(d)
}

func age(t, now time.Time) string {
	if t.IsZero() {
		return unknown
	}
	return duration.HumanDuration(now.Sub(t))
}
