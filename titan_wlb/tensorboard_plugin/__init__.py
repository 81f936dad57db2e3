"""The TensorBoard tab "Imbalance": who waits, for whom, and why. Never imports torch.

loader      what TensorBoard imports; as good as empty
plugin      routes of the web server
parameters  of a request, checked
store       reads event files, through TensorBoard's data provider alone
overview    headline numbers, where time goes, who is slow
grid        ranks x steps, ordered and pooled to pixels
step_view   one step: micro-batches and actions
static/     the page, modules without a build step
"""
