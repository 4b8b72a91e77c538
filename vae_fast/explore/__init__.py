"""`vae-fast explore`: a local page to steer a trained model by. `scene` is what it shows, without a page library;
`page` lays it out with Panel (the extra `explore`).

Why Panel: its sliders update while they are dragged, a click anywhere on its plots tells the coordinates, its scripts
and styles come from its own server, and it reports nothing. Gradio reports its use and loads fonts from elsewhere until
told otherwise, and a click on its plots tells no coordinates. Dash tells a clicked point, and nothing between points.
Streamlit reports its use until told otherwise, and updates when a slider is released.
"""
