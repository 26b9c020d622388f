package kube

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/pager"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Paged returns a reader whose lists ask the API server for one page after another, so
// that a list of thousands of objects does not become one large response. It must not
// wrap a cache, which has no pages.
func Paged(r client.Reader) client.Reader { return paged{r} }

type paged struct{ client.Reader }

// List implements client.Reader. Its caller must not limit the list.
func (p paged) List(ctx context.Context, list client.ObjectList, options ...client.ListOption) error {
	var items []runtime.Object
	page := func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
		into, ok := list.DeepCopyObject().(client.ObjectList)
		if !ok {
			return nil, fmt.Errorf("%T is not a list", list)
		}
		err := p.Reader.List(ctx, into, append(options[:len(options):len(options)], client.Limit(o.Limit), client.Continue(o.Continue))...)
		return into, err
	}
	err := pager.New(page).EachListItem(ctx, metav1.ListOptions{}, func(item runtime.Object) error {
		items = append(items, item)
		return nil
	})
	if err != nil {
		return err
	}
	return meta.SetList(list, items)
}
